"""Optuna's proposals: the whole grid, once, the same each time, and nothing when it is done."""

from muxfer.adapters.optuna_search import OptunaSearcher
from muxfer.config import Search
from muxfer.search import grid
from muxfer.trial import Outcome, Record


def search(**changes):
    grids = {"width": (32, 64), "base_lr": (0.001, 0.002, 0.004)}
    return Search(axis="width", hp="base_lr", **{"grids": grids, **changes})


def record(setting, replicate=0, outcome=Outcome.DIVERGED):
    return Record(key="k", setting=setting, replicate=replicate, outcome=outcome, metric=None, step=1)


def as_set(settings):
    return {tuple(sorted(setting.items())) for setting in settings}


def test_a_grid_is_proposed_whole_and_each_setting_once():
    asked = OptunaSearcher(search(), seed=0).ask([])
    assert len(asked) == 6
    assert as_set(asked) == as_set(grid(search()))


def test_the_same_records_give_the_same_round():
    assert OptunaSearcher(search(), seed=3).ask([]) == OptunaSearcher(search(), seed=3).ask([])


def test_a_finished_grid_asks_for_nothing():
    records = [record(setting) for setting in grid(search())]
    assert OptunaSearcher(search(), seed=0).ask(records) == []
    assert OptunaSearcher(search(), seed=0).ask(records[1:]) != []


def test_a_failed_trial_or_a_missing_replicate_keeps_the_search_open():
    records = [record(setting) for setting in grid(search())]
    failed = [*records[1:], record(records[0].setting, outcome=Outcome.FAILED)]
    assert OptunaSearcher(search(), seed=0).ask(failed) != []
    assert OptunaSearcher(search(seeds=2), seed=0).ask(records) != []
    second = [record(setting, replicate=1) for setting in grid(search())]
    assert OptunaSearcher(search(seeds=2), seed=0).ask(records + second) == []
