"""Plans in depth: what they scale, what they refuse, and how tasks and targets use them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from statistics import mean, median

import pytest
import torch
from torch import nn

from muxfer.analysis.transferability import best_setting, judge
from muxfer.config.parse import parse_task
from muxfer.config.settings import with_setting
from muxfer.errors import BadInput
from muxfer.models.build import build_model, scale_plan
from muxfer.mup import ScalePlan, fold_factors, make_plan, parametrize, validate_same_base
from muxfer.study.trials import grid_trials, study_of
from muxfer.transfer.target import target_run
from tests.mup.depth_cases import BASE, BASE_DEPTH, CASES, DEPTH, Residual, S, is_end, right_plan
from tests.synthetic import settled


@pytest.mark.parametrize("case", CASES)
def test_completep_at_the_base_depth_is_mup(case: str) -> None:
    """Scales and initializations are equal, and so are the scaled weights."""
    completep = CASES[case].plan(base_depth=DEPTH)
    mup = CASES[case].plan(base_depth=DEPTH, parametrization="mup")
    assert completep.scales == mup.scales
    assert replace(completep, parametrization="mup", base_depth=1, depth=1) == mup


@pytest.mark.parametrize("case", CASES)
def test_weights_are_bit_identical_at_base_width_and_base_depth(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case].build(BASE, BASE_DEPTH)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    parametrize(model, CASES[case].plan(width=BASE, depth=BASE_DEPTH, output_multiplier=1.0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_depth_alone_scales_branch_ends_only() -> None:
    """At the base width: weight and bias of each end by s, and not a bit of anything else."""
    case = CASES["residual"]
    torch.manual_seed(0)
    model = case.build(BASE, DEPTH)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    parametrize(model, case.plan(width=BASE, output_multiplier=1.0))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name] * S if is_end(name) else before[name]), name


def slope(sizes: list[int], values: list[float]) -> float:
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return sum((a - mean(x)) * (b - mean(y)) for a, b in zip(x, y, strict=True)) / sum((a - mean(x)) ** 2 for a in x)


@cache
def gradient_over_eps() -> dict[str, float]:
    """Slope over log depth of RMS(gradient) / eps at initialization, of each kind of parameter; median over blocks."""
    depths = [2, 8, 32]
    case = CASES["residual"]
    found: dict[str, list[float]] = {}
    for depth in depths:
        plan = case.plan(width=BASE, depth=depth)
        by_kind: dict[str, list[float]] = {}
        for seed in range(3):
            torch.manual_seed(seed)
            model = case.build(BASE, depth)
            parametrize(model, plan)
            *given, target = case.inputs(torch.Generator().manual_seed(seed))
            (model(*given) - target).square().mean().backward()
            for name, parameter in model.named_parameters():
                kind = ".".join(part for part in name.split(".") if not part.isdigit())
                rms = parameter.grad.square().mean().sqrt().item()
                by_kind.setdefault(kind, []).append(rms / plan.scales[name].eps)
        for kind, values in by_kind.items():
            found.setdefault(kind, []).append(median(values))
    return {kind: slope(depths, values) for kind, values in found.items()}


@pytest.mark.parametrize(
    "kind",
    [
        *("norm.weight", "q.weight", "q_norm.weight", "kv.weight", "fc1.weight", "gate.weight", "scale_shift_table"),
        *("proj.weight", "proj.bias", "fc2.weight", "fc2.bias"),
    ],
)
def test_ratio_of_gradient_to_eps_is_constant_in_depth(kind: str) -> None:
    """Every parameter inside a branch needs s, even a gain in which nothing grows. Without s the slope would be -1."""
    assert abs(gradient_over_eps()[f"blocks.{kind}"]) < 0.3


def tied(width: int) -> nn.Module:
    model = Residual(width, 2)
    model.blocks[0].proj.weight = model.blocks[0].q.weight
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_ends": ()}, "declares no branch ends, so it can't be scaled in depth"),
        ({"branch_ends": ("block.*.proj.*",)}, "branch_ends match no parameter of the model: block"),
        ({"branches": ("block.*",)}, "branches match no parameter of the model: block"),
        ({"branches": ()}, r"branch end blocks.0.fc2.bias is in none of the branches \(none\)"),
        ({"branch_ends": ("blocks.*.proj.*", "embed.*")}, "branch end embed.bias is in none of the branches blocks"),
        ({"branch_ends": ("blocks.*.proj.weight",)}, "blocks.0.proj.weight is a branch end and blocks.0.proj.bias is"),
        ({"branch_ends": ("blocks.*.proj.bias",)}, "blocks.0.proj.bias is a branch end and blocks.0.proj.weight is"),
        ({"branches": ("*",)}, "the readout out.weight is declared inside a residual branch"),
        ({"build": tied}, "one tensor matches branch_ends under one name and not under another: blocks.0.q"),
        ({"depth": 0}, "depth 0: expected at least 1"),
        ({"base_depth": 0}, "base depth 0: expected at least 1"),
        ({"parametrization": "mup"}, "2 times the base depth has no effect under mup"),
        ({"parametrization": "standard"}, "no effect under standard"),
        ({"parametrization": "stock"}, "no effect under stock"),
    ],
)
def test_models_that_cannot_be_scaled_in_depth_are_refused(changes: dict, message: str) -> None:
    arguments = {"build": lambda width: Residual(width, 2), "width": 32, "base_width": 16, "depth": 2, "base_depth": 1}
    arguments |= {"parametrization": "completep", "readout": "out.weight"}
    arguments |= {"branches": ("blocks.*",), "branch_ends": ("blocks.*.proj.*", "blocks.*.fc2.*")}
    with pytest.raises(BadInput, match=message) as caught:
        make_plan(**{**arguments, **changes})
    assert "\n" not in str(caught.value)


def test_a_pattern_may_match_nothing_if_another_matches() -> None:
    case = CASES["residual"]
    wider = replace(case, branch_ends=(*case.branch_ends, "blocks.*.cross_attn.*"))
    assert wider.plan() == case.plan()


def test_only_completep_plans_hold_depths() -> None:
    with_depth = CASES["residual"].plan(base_depth=DEPTH, parametrization="mup")
    without = CASES["residual"].plan(base_depth=1, depth=1, parametrization="mup")
    assert (with_depth.base_depth, with_depth.depth) == (1, 1)
    assert with_depth.to_dict().keys() == without.to_dict().keys()
    assert not {"base_depth", "depth"} & without.to_dict().keys()


def test_depths_are_kept_in_a_plan_and_in_its_hash() -> None:
    plan = right_plan("residual")
    assert (plan.base_depth, plan.depth) == (BASE_DEPTH, DEPTH)
    assert ScalePlan.from_dict(plan.to_dict()) == plan
    assert len({plan.hash, replace(plan, base_depth=1).hash, replace(plan, depth=5).hash}) == 3


def test_a_target_of_another_base_depth_is_refused() -> None:
    proxy, target = CASES["residual"].plan(width=BASE, depth=2), CASES["residual"].plan()
    validate_same_base(proxy, target)
    validate_same_base(proxy.to_dict(), target)
    with pytest.raises(BadInput, match="target has base_depth 3, its source 2; .* use 2"):
        validate_same_base(proxy.to_dict(), CASES["residual"].plan(base_depth=3))
    with pytest.raises(BadInput, match="target has parametrization completep, its source mup"):
        validate_same_base(CASES["residual"].plan(base_depth=DEPTH, parametrization="mup"), target)


IN_DEPTH = ("optimizer.parametrization=completep", "++model.base_depth=2", "model.depth=4", "model.num_classes=10")


def test_a_task_with_a_base_depth_gets_a_plan_and_a_model(make_config: Callable) -> None:
    model, plan = build_model(make_config(*IN_DEPTH).task, replicate=0)
    assert (plan.base_depth, plan.depth) == (2, 4)
    assert {name for name, fold in fold_factors(plan).items() if fold == 0.5} >= {
        f"blocks.{i}.{end}.{part}" for i in range(4) for end in ("attn.proj", "mlp.fc2") for part in ("weight", "bias")
    }
    assert len(model.blocks) == 4
    plain = scale_plan(make_config("model.depth=4", "model.num_classes=10").task)
    assert (plain.parametrization, plain.depth) == ("mup", 1)


def test_a_deeper_target_has_the_base_depth_of_its_proxies(make_config: Callable) -> None:
    config = make_config(*IN_DEPTH, "target.depth=6", "search.base_lr=[2**-8,2**-7,2**-6]")
    records = [
        settled(trial.setting, 1 + abs(math.log2(trial.setting["base_lr"]) + 7), key=trial.key, num_parameters=1000)
        for trial in grid_trials(config, fingerprint="0")
    ]
    target = target_run(
        config,
        study_of("lr-width", config, fingerprint="0"),
        verdict=judge(records, axis="width", hp="base_lr"),
        best=best_setting(records, axis="width", hp="base_lr"),
        inside=True,
        unfinished=0,
        fingerprint="0",
        num_pictures=1493,
    )
    plan = scale_plan(parse_task(target.trial.task))
    assert (plan.base_depth, plan.depth, plan.base_width) == (2, 6, config.model.base_width)
    validate_same_base(scale_plan(with_setting(config.task, target.winner.setting)), plan)
