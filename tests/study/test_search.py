"""What a search asks for where nothing needs to be learned, and what its settings came to."""

import math

import pytest

from muxfer.config.study import Search, Space
from muxfer.study.search import (
    drawn_setting,
    finalists,
    grid,
    is_finalist,
    key_of,
    num_settings,
    searched,
    values_of,
)
from muxfer.trial import Outcome
from tests.synthetic import settled


def search(**changes):
    grids = {"width": (32, 64), "base_lr": (0.001, 0.002, 0.004)}
    return Search(axis="width", hp="base_lr", **{"grids": grids, **changes})


def record(setting, metric, replicate=0, **changes):
    return settled(setting, metric, replicate=replicate, **changes)


def test_a_grid_is_every_combination_once():
    settings = grid(search())
    assert len(settings) == len({key_of(setting) for setting in settings}) == num_settings(search()) == 6


def test_a_drawn_search_counts_its_draws_at_each_combination_and_its_finalists():
    drawn = search(sampler="tpe", num_settings=5, spaces={"grad_clip": Space(kind="uniform", bounds=(1.0, 2.0))})
    assert num_settings(drawn) == 30
    assert num_settings(search(sampler="tpe", num_settings=5, finalists=2, finalist_steps=9)) == 32


def test_a_setting_is_worth_the_mean_of_its_replicates_once_all_are_settled():
    a, b, c = ({"width": 32, "base_lr": lr} for lr in (0.001, 0.002, 0.004))
    records = [record(a, 0.5), record(a, 0.7, 1), record(b, 0.5), record(b, None, 1), record(c, 0.1)]
    assert values_of(records, 2) == {key_of(a): pytest.approx(0.6), key_of(b): math.inf}
    assert values_of(records, 1) == {key_of(a): 0.5, key_of(b): 0.5, key_of(c): 0.1}
    target = record(c, 0.1, 1, kind="target")
    failed = record(c, None, 1, outcome=Outcome.FAILED)
    assert key_of(c) not in values_of([*records, target, failed], 2)


def test_a_setting_of_the_ledger_is_the_one_that_was_asked_for_whatever_the_order_of_its_keys():
    asked = {"width": 32, "base_lr": 0.001}
    assert key_of(asked) in values_of([record({"base_lr": 0.001, "width": 32}, 0.5)], 1)


def test_drawn_values_stand_in_one_order_with_what_is_held():
    spaces = {
        "base_lr": Space(kind="uniform", bounds=(-9.0, -5.0), log2=True),
        "warmup_steps": Space(kind="integer", bounds=(1.0, 9.0)),
    }
    setting = drawn_setting(search(spaces=spaces), {"width": 32}, {"warmup_steps": 3, "base_lr": -7.123456789})
    assert list(setting.items()) == [("width", 32), ("base_lr", 0.00717176), ("warmup_steps", 3)]
    assert drawn_setting(search(spaces=spaces), {}, {"base_lr": -9.0})["base_lr"] == 2**-9


def test_there_are_no_finalists_before_the_last_trial_and_none_that_diverged():
    final = search(finalists=2, finalist_steps=300)
    settings = grid(final)
    records = [record(setting, setting["base_lr"] + 0.1) for setting in settings]
    assert finalists(final, settings, records[1:]) == []
    assert finalists(search(), settings, records) == []
    found = finalists(final, settings, records)
    assert found == [{"width": 64, "base_lr": lr, "steps": 300} for lr in (0.001, 0.002)]
    assert not any(is_finalist(final, one) for one in records)
    last = record(found[0], 0.01)
    assert is_finalist(final, last)
    assert searched(final, [*records, last]) == records
    assert searched(search(), [last]) == [last]
    all_but_one = [record(s, None if s["width"] == 64 and s["base_lr"] > 0.001 else 0.1) for s in settings]
    assert finalists(final, settings, all_but_one) == [{"width": 64, "base_lr": 0.001, "steps": 300}]
