"""Each family declares its residual branches and their ends rightly, and stock U-ViT is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from muxfer.config.models import Uvit
from muxfer.errors import BadInput
from muxfer.models.families import family_of
from muxfer.mup import make_plan
from proxy_models import FAMILIES
from tests.proxy_models.every_family import SMALL, batch, build

CHANGES = {"depth": 3, "patch": 4, "channels": 1}


def build_family(family: str, width: int) -> nn.Module:
    return build(family, width=width, **CHANGES, **({"skip": "residual"} if family == "uvit" else {}))


def forward_family(family: str) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A family's model in float64 with nothing zero in it, and its forward on one batch."""
    torch.manual_seed(1)
    model = build_family(family, 32).double()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    given = {name: x.double() if x.is_floating_point() else x for name, x in batch(family, **CHANGES).items()}
    return model, lambda: model(**given)


def find_branches(family: str) -> tuple[set[str], set[str]]:
    """Names inside the family's branches and of the branch ends, by what a plan at the base width does to them."""
    entry = FAMILIES[family]
    plan = make_plan(
        lambda width: build_family(family, width),
        width=32,
        base_width=32,
        parametrization="completep",
        readout=entry.readout,
        declared=entry.declared,
        depth=3,
        base_depth=1,
        branches=entry.branches,
        branch_ends=entry.branch_ends,
    )
    inside = {name for name, scale in plan.scales.items() if scale.eps * scale.fold != 1}
    return inside, {name for name, scale in plan.scales.items() if scale.fold != 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_branch_ends_of_each_family_close_all_branches_once(family: str) -> None:
    """With ends of zero nothing inside has a gradient. Near zero the output is linear, so no end follows another."""
    model, forward = forward_family(family)
    inside, ends = find_branches(family)
    assert ends
    assert ends < inside
    parameters = dict(model.named_parameters())
    whole = {name: parameters[name].detach().clone() for name in ends}

    def at(factor: float) -> torch.Tensor:
        with torch.no_grad():
            for name in ends:
                parameters[name].copy_(factor * whole[name])
        return forward()

    small, double = (at(factor).detach() for factor in (1e-4, 2e-4))
    closed = at(0.0)
    grads = torch.autograd.grad(closed.square().sum(), [*parameters.values()], allow_unused=True)
    for name, grad in zip(parameters, grads, strict=True):
        if name in inside - ends:
            assert grad is None or not grad.any(), name
    torch.testing.assert_close(double - closed, 2 * (small - closed), rtol=1e-2, atol=1e-6)
    assert (small - closed).abs().max() > 1e-6


def test_stock_uvit_is_refused_with_the_remedy() -> None:
    for skip in ("linear", "residual"):
        model = Uvit(family="uvit", num_classes=10, skip=skip, base_width=32, **{**SMALL, **CHANGES})
        family = family_of(model)
        arguments = {"width": 64, "base_width": 32, "depth": 3, "base_depth": 1, "parametrization": "completep"}
        arguments |= {name: getattr(family, name) for name in ("readout", "branches", "branch_ends")}
        if skip == "linear":
            with pytest.raises(BadInput, match=r"no branch ends.*model.skip=residual offers x \+ W\[x; skip\]"):
                make_plan(family.build, **arguments)
        else:
            plan = make_plan(family.build, **arguments)
            assert plan.scales["out_blocks.0.skip_linear.weight"].fold == pytest.approx(1 / 3)
