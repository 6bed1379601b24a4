"""Optuna's proposals come from the records alone: interrupted anywhere, a search goes on as if it had not been."""

import json
import math
import random

import pytest

from muxfer.config.study import Search, Space
from muxfer.config.task import validate
from muxfer.study.optuna_search import OptunaSearcher, importances
from muxfer.study.search import key_of
from muxfer.trial import Outcome
from tests.synthetic import settled

SPACES = {
    "base_lr": Space(kind="uniform", bounds=(-10.0, -3.0), log2=True),
    "grad_clip": Space(kind="log_uniform", bounds=(0.01, 100.0)),
}
MIXED = {
    "base_lr": Space(kind="log_uniform", bounds=(2.0**-9, 0.125)),
    "warmup_steps": Space(kind="log_integer", bounds=(1.0, 1000.0)),
    "weight_decay": Space(kind="uniform", bounds=(0.0, 0.1)),
    "output_multiplier": Space(kind="choice", bounds=(-2.0, 0.0, 3.0), log2=True),
    "batch_size": Space(kind="integer", bounds=(4.0, 8.0), log2=True),
    "grad_clip": Space(kind="integer", bounds=(1.0, 9.0)),
}
ADAPTIVE = ["tpe", "gp", "cmaes"]
SAMPLERS = ["random", "qmc", *ADAPTIVE]


def search(sampler="tpe", **changes):
    given = {"grids": {"width": (32, 64)}, "spaces": SPACES, "num_settings": 7, "round_size": 3, "sampler": sampler}
    return Search(axis="width", hp="base_lr", **given | changes)


def record(setting, replicate=0):
    """A bowl with its minimum at 2^-7, deeper for the wider model; diverged from 2^-5 on."""
    at = math.log2(setting["base_lr"]) + 7
    clip = math.log2(setting.get("grad_clip", 1)) / 10
    bowl = 0.5 + 0.02 * at**2 + 0.1 * clip**2 + 0.1 * replicate
    metric = None if at > 2 else bowl - setting["width"] / 1000 - setting.get("steps", 0) / 1e4
    return settled(setting, metric, key=f"{key_of(setting)}{replicate}", replicate=replicate)


def finished(asked, seed=0):
    """The search brought to its end: everything that it asked for, and the records."""
    searcher, records, settings = OptunaSearcher(asked, seed=seed), [], None
    while settings != (settings := searcher.settings(records)):
        records = [record(setting, replicate) for setting in settings for replicate in range(asked.seeds)]
    return settings, records


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_interrupted_anywhere_asks_what_the_uninterrupted_one_does(sampler):
    """Records come in in any order, one at a time; a searcher made anew from them agrees with the one that saw all."""
    asked = search(sampler, seeds=2, finalists=2, finalist_steps=100)
    live, records, order = OptunaSearcher(asked, seed=3), [], random.Random(5)
    every = {"gp": 15, "qmc": 4}.get(sampler, 1)
    while True:
        settings = live.settings(records)
        if len(records) % every == 0:
            assert OptunaSearcher(asked, seed=3).settings(records) == settings
        known = {(key_of(one.setting), one.replicate) for one in records}
        missing = [(s, r) for s in settings for r in (0, 1) if (key_of(s), r) not in known]
        if not missing:
            break
        records.append(record(*order.choice(missing)))
    assert len(settings) == 2 * 7 + 2
    assert live.settings(records) == settings
    order.shuffle(records)
    assert OptunaSearcher(asked, seed=3).settings(records) == settings


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_a_round_is_asked_once_every_replicate_of_the_one_before_is_settled(sampler):
    asked = search(sampler, grids={"width": (32,)}, seeds=2)
    searcher = OptunaSearcher(asked, seed=0)
    first = searcher.settings([])
    assert len(first) == 3
    records = [record(setting, replicate) for setting in first for replicate in (0, 1)]
    assert searcher.settings(records[1:]) == first
    failed = settled(first[0], None, outcome=Outcome.FAILED)
    assert searcher.settings([failed, *records[1:]]) == first
    assert searcher.settings(records)[:3] == first
    assert len(searcher.settings(records)) == 6


def test_each_combination_of_the_grids_goes_its_own_way_once_its_own_round_is_over():
    asked = search("tpe")
    first = OptunaSearcher(asked, seed=0).settings([])
    done = [record(setting) for setting in first if setting["width"] == 64]
    later = OptunaSearcher(asked, seed=0).settings(done)
    assert [setting["width"] for setting in later] == [32] * 3 + [64] * 6


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_what_does_not_learn_asks_at_once_for_the_same_points_at_every_axis_value(sampler):
    settings = OptunaSearcher(search(sampler), seed=0).settings([])
    assert len(settings) == 14
    narrow, wide = ([{**s, "width": 0} for s in settings if s["width"] == width] for width in (32, 64))
    assert narrow == wide


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_what_learns_begins_alike_and_learns_at_each_axis_value(sampler):
    settings, _ = finished(search(sampler))
    narrow, wide = ([{**s, "width": 0} for s in settings if s["width"] == width] for width in (32, 64))
    assert narrow[:3] == wide[:3]
    assert len(narrow) == len(wide) == 7


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_asks_for_other_points_and_the_same_one_for_the_same(sampler):
    first, again, other = (OptunaSearcher(search(sampler), seed=seed).settings([]) for seed in (0, 0, 1))
    assert first == again
    assert not {key_of(setting) for setting in first} & {key_of(setting) for setting in other}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_settings_go_on_from_those_that_were_asked(sampler):
    asked, records = finished(search(sampler, num_settings=5, grids={"width": (32,)}))
    more = OptunaSearcher(search(sampler, num_settings=7, grids={"width": (32,)}), seed=0).settings(records)
    assert more[:5] == asked
    assert len(more) > 5


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_values_keep_their_bounds_their_types_and_survive_json(make_config, sampler):
    asked = search(sampler, spaces=MIXED, num_settings=40, round_size=20, grids={"width": (32,)})
    validate(asked)
    settings, _ = finished(asked)
    assert len(settings) == 40
    for setting in settings:
        assert 2.0**-9 <= setting["base_lr"] <= 0.125
        assert 0 <= setting["weight_decay"] <= 0.1
        assert type(setting["warmup_steps"]) is int
        assert 1 <= setting["warmup_steps"] <= 1000
        assert setting["batch_size"] in (16, 32, 64, 128, 256)
        assert type(setting["batch_size"]) is int
        assert setting["output_multiplier"] in (0.25, 1.0, 8.0)
        assert type(setting["grad_clip"]) is float
        assert json.loads(json.dumps(setting)) == setting
        assert all(f"{value:.6g}" == f"{value:.17g}" or float(f"{value:.6g}") == value for value in setting.values())
    assert len({setting["batch_size"] for setting in settings}) > 2


def test_an_end_that_rounding_would_cross_is_kept():
    """2^-9 has seven digits: at six it would lie below itself."""
    narrow = {"base_lr": Space(kind="uniform", bounds=(-9.0, -9.0 + 1e-9), log2=True)}
    settings = OptunaSearcher(search("random", spaces=narrow), seed=0).settings([])
    assert all(2.0**-9 <= setting["base_lr"] <= 2.0 ** (-9 + 1e-9) for setting in settings)


def test_choices_drawn_again_are_asked_for_once():
    choices = {"output_multiplier": (1.0, 2.0), "base_lr": (0.01,)}
    few = {name: Space(kind="choice", bounds=values) for name, values in choices.items()}
    settings, _ = finished(search("tpe", spaces=few, num_settings=12, grids={"width": (32,)}))
    assert len(settings) == len({key_of(setting) for setting in settings}) == 2


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_that_learns_leaves_what_diverges(sampler):
    """Two sevenths of the space, which a random search would go on drawing from."""
    settings, _ = finished(search(sampler, num_settings=40, round_size=5, grids={"width": (32,)}))
    assert sum(math.log2(setting["base_lr"]) > -5 for setting in settings[20:]) / 20 < 1 / 7


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_a_search_that_learns_comes_within_2_percent_of_the_bottom_of_the_bowl(sampler):
    num = 12 if sampler == "gp" else 30
    _, records = finished(search(sampler, num_settings=num, grids={"width": (32,)}))
    assert min(one.metric for one in records if one.metric) < 1.02 * 0.468


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_a_search_where_everything_diverges_goes_on(sampler):
    hot = SPACES | {"base_lr": Space(kind="uniform", bounds=(-4.0, -1.0), log2=True)}
    settings, records = finished(search(sampler, spaces=hot, grids={"width": (32,)}, num_settings=6))
    assert len(settings) == 6
    assert all(one.outcome is Outcome.DIVERGED for one in records)


def test_finalists_are_the_best_at_the_largest_axis_value():
    settings, records = finished(search("qmc", finalists=2, finalist_steps=100, num_settings=9))
    *searched, first, second = settings
    ranked = sorted((r for r in records if r.setting in searched and r.metric), key=lambda one: one.metric)
    best = [one.setting for one in ranked if one.setting["width"] == 64][:2]
    assert [first, second] == [{**setting, "steps": 100} for setting in best]


def test_the_setting_that_decides_is_the_important_one_and_a_few_trials_tell_nothing():
    asked = search("qmc", num_settings=24)
    _, records = finished(asked)
    shares = importances(records, asked)
    assert set(shares) == {"base_lr", "grad_clip"}
    assert shares["base_lr"] > 2 * shares["grad_clip"]
    assert sum(shares.values()) == pytest.approx(1)
    random.Random(0).shuffle(records)
    assert importances(records, asked) == shares
    assert importances(records[:6], asked) == {}
    assert importances([], asked) == {}
    one = Search(axis="width", hp="base_lr", grids={"width": (32,), "base_lr": (0.01,)})
    assert importances(records, one) == {}
