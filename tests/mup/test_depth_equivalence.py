"""CompleteP: folded depth scaling trains as a forward that multiplies every branch by s, in float64, to 1e-12.

The unfolded forward is made with hooks: s times the output of each module that ends a branch, f times the input of each
readout. Its parameters, rates, decays, eps and clip are the unfolded ones, written down here and not taken from the
table.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from muxfer.mup import ScalePlan, fold_factors, param_groups, parametrize, scale_of
from tests.mup.depth_cases import ALPHA, CASES, DEPTH, WIDTH, Case, M, S, is_end, right_plan

pytestmark = pytest.mark.usefixtures("one_thread")
EPS, DECAY, RATE, BETAS, CLIP = 1e-3, 0.1, 2.0**-6, (0.9, 0.95), 0.25
STEPS = 24
FEW = 8
"""Steps within which a mutant must change the losses."""


def train(
    case: Case, model: nn.Module, groups: list[dict], folds: Mapping[str, float], *, steps: int
) -> tuple[list[float], list[bool]]:
    """Losses, and which steps were clipped, by the global norm of fold x gradient."""
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(groups)
    losses, clipped = [], []
    for _ in range(steps):
        *given, target = case.inputs(generator)
        loss = (model(*given) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([folds[name] * p.grad.norm() for name, p in model.named_parameters()]).norm()
        for parameter in model.parameters():
            parameter.grad.mul_((CLIP / (norm + 1e-6)).clamp(max=1))
        optimizer.step()
        losses.append(loss.item())
        clipped.append(norm.item() > CLIP)
    return losses, clipped


def fresh(case: Case, plan: ScalePlan) -> nn.Module:
    torch.manual_seed(0)
    model = case.build(WIDTH, DEPTH)
    parametrize(model, plan)
    return model


def train_folded(
    case: Case, plan: ScalePlan, *, initial: ScalePlan | None = None, steps: int = STEPS
) -> tuple[list[float], list[bool]]:
    """By the plan's numbers, from weights scaled by the same plan or by another, `initial`."""
    model = fresh(case, initial or plan)
    groups = param_groups(model, plan, base_lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    return train(case, model, groups, fold_factors(plan), steps=steps)


@cache
def train_unfolded(case_name: str) -> tuple[list[float], list[bool]]:
    """Train the same initial function with s and f in the forward and every number of the unfolded rule."""
    case, plan = CASES[case_name], right_plan(case_name)
    model = fresh(case, plan)
    groups = []
    for name, parameter in model.named_parameters():
        role, inside = plan.scales[name].role, name.startswith("blocks.")
        factor = S if is_end(name) else 1.0
        if role == "readout":
            factor *= (ALPHA if name == case.readout else 1.0) / M
            module = model.get_submodule(name.removesuffix(".weight"))
            module.register_forward_pre_hook(lambda _, args, f=factor: (f * args[0],))
        elif is_end(name) and name.endswith(".weight"):
            model.get_submodule(name.removesuffix(".weight")).register_forward_hook(lambda _, args, out: S * out)
        with torch.no_grad():
            parameter.div_(factor)
        hidden = role == "hidden"
        groups.append(
            {
                "params": [parameter],
                "lr": RATE / M if hidden else RATE,
                "weight_decay": DECAY * M if hidden else DECAY,
                "eps": EPS * (S if inside else 1.0) / (1.0 if role == "finite" else M),
                "betas": BETAS,
            }
        )
    return train(case, model, groups, dict.fromkeys(plan.scales, 1.0), steps=STEPS)


def gap(case: str, plan: ScalePlan, *, initial: ScalePlan | None = None) -> float:
    """Largest difference of the losses from those of the unfolded forward."""
    losses, _ = train_folded(CASES[case], plan, initial=initial, steps=FEW)
    return max(abs(a - b) for a, b in zip(losses, train_unfolded(case)[0][:FEW], strict=True))


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_those_of_the_unfolded_forward(case: str) -> None:
    theirs, their_clips = train_unfolded(case)
    losses, clips = train_folded(CASES[case], right_plan(case))
    assert clips == their_clips
    assert sum(clips) >= STEPS // 2
    assert abs(losses[-1] - losses[0]) > 1e-2
    assert losses == pytest.approx(theirs, rel=0, abs=1e-12)


def rescaled(which: Callable[[str], bool], **factors: float) -> Callable[[ScalePlan], ScalePlan]:
    """Numbers of some parameters multiplied."""

    def change(plan: ScalePlan) -> ScalePlan:
        return replace(
            plan,
            scales={
                name: replace(scale, **{key: getattr(scale, key) * factor for key, factor in factors.items()})
                if which(name)
                else scale
                for name, scale in plan.scales.items()
            },
        )

    return change


def is_inside(name: str) -> bool:
    return name.startswith("blocks.") and not is_end(name)


def is_gain(name: str) -> bool:
    return ".q_norm." in name


MUTANTS = {
    "eps 1/m of what is inside": rescaled(is_inside, eps=1 / S),
    "eps s/m of the folded end": rescaled(is_end, eps=S),
    "eps s/m of the shared condition": rescaled(lambda name: not name.startswith("blocks."), eps=S),
    "decay not divided": rescaled(is_end, weight_decay=S),
    "decay divided inside too": rescaled(is_inside, weight_decay=1 / S),
    "rate not folded": rescaled(is_end, lr=1 / S),
    "rate folded inside too": rescaled(is_inside, lr=S),
    "clipped by the folded gradient": rescaled(is_end, fold=1 / S),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_wrong_number_changes_the_losses(case: str, mutant: str) -> None:
    plan = right_plan(case)
    assert gap(case, MUTANTS[mutant](plan), initial=plan) > 1e-6


def test_eps_of_a_finite_gain_without_the_depth_changes_the_losses() -> None:
    plan = right_plan("residual")
    assert gap("residual", rescaled(is_gain, eps=1 / S)(plan), initial=plan) > 1e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mutant", ["bias not folded", "gate folded too"])
def test_a_fold_in_the_wrong_place_changes_the_losses(case: str, mutant: str) -> None:
    """The whole plan changes, and so do the initial weights."""
    given = CASES[case]
    if mutant == "gate folded too":
        plan = replace(given, branch_ends=(*given.branch_ends, given.gates)).plan()
    else:
        plan = right_plan(case)
        ends = {name for name in plan.scales if is_end(name) and name.endswith(".bias")}
        bias = scale_of("input", width_ratio=M, parametrization="completep", depth_ratio=1 / S, in_branch=True)
        plan = replace(plan, scales={**plan.scales, **dict.fromkeys(ends, bias)})
    assert gap(case, plan) > 1e-6
