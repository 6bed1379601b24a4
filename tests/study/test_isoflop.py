"""What a budget pays for: the settings of an isoFLOP study, its points, and a target of the size that a fit names."""

import math

import numpy as np
import pytest

from muxfer.analysis.laws.isoflop_points import Points
from muxfer.analysis.laws.scaling_law import fit_isoflop
from muxfer.config.hydra_compose import compose
from muxfer.config.parse import parse
from muxfer.config.settings import with_setting
from muxfer.errors import BadInput
from muxfer.study.isoflop import isoflop_settings, points_of, target_size, tokens_per_sample
from muxfer.trial import Outcome
from tests.small_sweeps import counted
from tests.synthetic import settled

WIDE = ["search.hp=width", "search.width_per_depth=null", "search.depth=null", "search.width=[32,64,96,128]"]


def study(*overrides):
    return parse(compose("isoflop", ["search.flops=[1e11,4e11]", "training.batch_size=64", *overrides]))


def settings_of(config):
    return isoflop_settings(config.search, config.task, counted)


def test_steps_spend_the_budget_by_parameters_and_tokens():
    config = study("search.depth=[2,3,4,5]")
    settings = settings_of(config)
    assert [(s["flops"], s["depth"], s["width"]) for s in settings] == [
        (flops, depth, 16 * depth) for flops in (1e11, 4e11) for depth in (2, 3, 4, 5)
    ]
    for setting in settings:
        task = with_setting(config.task, setting)
        samples = task.training.steps * task.training.batch_size
        spent = 6 * counted(task.model).parameters * samples * tokens_per_sample(task.model)
        assert spent == pytest.approx(setting["flops"], rel=0.5 / setting["steps"])


def test_steps_spend_the_budget_by_counted_multiply_accumulates():
    config = study(*WIDE, "search.flops_by=counted")
    for setting in settings_of(config):
        assert "depth" not in setting
        task = with_setting(config.task, setting)
        spent = 6 * counted(task.model).macs * task.training.steps * task.training.batch_size
        assert spent == pytest.approx(setting["flops"], rel=0.5 / setting["steps"])


def test_warm_up_keeps_its_share_of_the_steps():
    share = 10 / 180
    config = study("search.depth=[2,3,4]", "training.steps=180", "training.warmup_steps=10")
    for setting in settings_of(config):
        assert setting["warmup_steps"] == pytest.approx(share * setting["steps"], abs=0.5)
    none = study("search.depth=[2,3,4]", "training.warmup_steps=0")
    assert all("warmup_steps" not in setting for setting in settings_of(none))


def test_a_size_that_a_budget_cannot_train_is_left_out():
    config = study("search.depth=[2,3,4,8]")
    settings = settings_of(config)
    tried = {(setting["flops"], setting["depth"]) for setting in settings}
    assert {(flops, depth) for flops in config.search.grids["flops"] for depth in (2, 3, 4, 8)} - tried == {(1e11, 8)}
    assert all(setting["steps"] >= 20 for setting in settings)


def test_a_budget_that_trains_too_few_sizes_is_refused():
    with pytest.raises(BadInput, match=r"search.flops 1e\+11 trains depth 8 for \d+ steps: expected at least 20"):
        settings_of(study("search.depth=[2,3,8,12]"))


def record(setting, loss, outcome=Outcome.FINISHED, **changes):
    return settled(setting, loss, **{"outcome": outcome, "step": setting["steps"], "num_parameters": 1000, **changes})


def test_records_become_points_and_a_diverged_one_keeps_its_place():
    task = study("search.depth=[2,3,4]").task
    setting = {"flops": 1e11, "width": 32, "depth": 2, "steps": 50}
    records = [record(setting, 0.5), record(setting, None, Outcome.DIVERGED, step=7)]
    records += [record(setting, None, Outcome.FAILED), record(setting, 0.4, kind="target")]
    points = points_of(records, task)
    tokens = 50 * task.training.batch_size * tokens_per_sample(task.model)
    assert points.flops.tolist() == [1e11, 1e11]
    assert points.params.tolist() == [1000, 1000]
    assert points.tokens.tolist() == [tokens, tokens]
    assert points.loss[0] == 0.5
    assert math.isnan(points.loss[1])


def fit_with(coefficient, exponent=0.5):
    """Laws whose optimal size at C is coefficient * C^exponent."""
    flops = np.repeat([1e10, 1e11, 1e12], 5)
    x = np.tile(np.linspace(-1, 1, 5), 3)
    params = coefficient * flops**exponent * np.exp(x)
    loss = flops**-0.03 * (1 + 0.05 * x**2)
    return fit_isoflop(Points(flops=flops, params=params, tokens=flops / 6 / params, loss=loss))


def test_the_target_is_the_nearest_model_that_can_be_built_and_spends_the_budget():
    task = study("search.depth=[2,3,4]").task
    fit = fit_with(0.4)
    found = target_size(fit, 4e12, task, counted)
    wanted = 0.4 * 4e12**0.5
    sizes = {width: counted(with_setting(task, {"width": width}).model).parameters for width in range(64, 193, 16)}
    assert found.width == min(sizes, key=lambda width: abs(math.log(sizes[width] / wanted)))
    assert (found.depth, found.params) == (task.model.depth, sizes[found.width])
    spent = 6 * found.params * found.steps * task.training.batch_size * tokens_per_sample(task.model)
    assert spent == pytest.approx(4e12, rel=0.5 / found.steps)
    assert found.loss == pytest.approx(4e12**-0.03, rel=1e-6)


def test_a_target_of_a_study_over_depths_is_as_wide_as_its_depth_asks():
    task = study("search.depth=[2,3,4]").task
    found = target_size(fit_with(0.4), 4e12, task, counted, width_per_depth=16)
    assert found.width == 16 * found.depth
    assert found.params == pytest.approx(0.4 * 4e12**0.5, rel=0.5)


@pytest.mark.parametrize(
    ("coefficient", "flops", "expected"),
    [(1e-5, 1e12, "want a model of 10 parameters: the nearest has"), (4.0, 1e11, "steps: expected at least 20")],
)
def test_a_budget_that_fits_no_model_is_refused(coefficient, flops, expected):
    with pytest.raises(BadInput, match=expected):
        target_size(fit_with(coefficient), flops, study("search.depth=[2,3,4]").task, counted)
