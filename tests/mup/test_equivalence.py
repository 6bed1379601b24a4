"""Folded scales train as Microsoft's mup package does: MuReadout and MuAdamW on our DiT, in float64, to 1e-12.

The package has one eps for all parameters. Ours is eps/m where something grows, and eps where nothing does (the
readout's bias), so the reference's groups are given those; with eps 1e-3 a wrong one is seen. The reference clips its
own gradients, which are those of the unfolded weights.
"""

from collections.abc import Callable
from functools import cache

import mup
import pytest
import torch
from torch import nn

from muxfer.mup import ScalePlan, fold_factors, make_plan, param_groups, parametrize
from proxy_models import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")
BASE, WIDTH = 32, 128
EPS, DECAY, RATE, BETAS, CLIP = 1e-3, 0.1, 2.0**-6, (0.9, 0.95), 0.25
STEPS = 20
READOUT = FAMILIES["dit"].readout


def build(width: int, *, random_readout: bool) -> nn.Module:
    model = (
        FAMILIES["dit"]
        .build(width=width, depth=2, head_dim=16, patch=2, image_size=8, channels=1, num_classes=10)
        .double()
    )
    if random_readout:
        nn.init.normal_(model.get_parameter(READOUT), std=width**-0.5)
    return model


def batches() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(3)

    def randn() -> torch.Tensor:
        return torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.float64)

    def one() -> tuple[torch.Tensor, ...]:
        t_B = 1000 * torch.rand(8, generator=generator, dtype=torch.float64)
        return randn(), t_B, torch.randint(0, 11, (8,), generator=generator), randn()

    return [one() for _ in range(STEPS)]


def clip_unfolded(model: nn.Module, folds: dict[str, float], max_norm: float) -> float:
    """Global-norm clipping where each gradient counts as f x g."""
    norms = [folds[name] * p.grad.norm() for name, p in model.named_parameters() if p.grad is not None]
    total = torch.stack(norms).norm()
    factor = (max_norm / (total + 1e-6)).clamp(max=1)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    return total.item()


def losses_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: Callable[[], float]
) -> tuple[list[float], list[bool]]:
    losses, clipped = [], []
    for x_BCHW, t_B, y_B, target_BCHW in batches():
        loss = (model(x_BCHW, t_B, y_B) - target_BCHW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        clipped.append(clip() > CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses, clipped


def train_ours(
    model: nn.Module, plan: ScalePlan, *, eps_of_readout: float | None = None
) -> tuple[list[float], list[bool]]:
    groups = param_groups(model, plan, base_lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    for group in groups:
        if eps_of_readout is not None and group["role"] == "readout":
            group["eps"] = eps_of_readout
    folds = fold_factors(plan)
    return losses_of(model, torch.optim.AdamW(groups), lambda: clip_unfolded(model, folds, CLIP))


def train_mup(initial: nn.Module, alpha: float, *, random_readout: bool) -> tuple[list[float], list[bool]]:
    """The package's own way from the same initial weights, its readout's weight unfolded."""
    models = {width: build(width, random_readout=random_readout) for width in (BASE, 2 * BASE, WIDTH)}
    for model in models.values():
        linear = model.final_layer.linear
        readout = mup.MuReadout(linear.in_features, linear.out_features, output_mult=alpha)
        model.final_layer.linear = readout.double()
    model = models[WIDTH]
    mup.set_base_shapes(model, models[BASE], delta=models[2 * BASE], rescale_params=False)
    state = {name: value.clone() for name, value in initial.state_dict().items()}
    state[READOUT] *= (WIDTH / BASE) / alpha
    model.load_state_dict(state)
    finite = [p for p in model.parameters() if p.infshape.ninf() == 0]
    infinite = [p for p in model.parameters() if p.infshape.ninf() > 0]
    assert len(finite) == 1
    groups = [{"params": infinite, "eps": EPS * BASE / WIDTH}, {"params": finite, "eps": EPS}]
    optimizer = mup.MuAdamW(groups, lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    return losses_of(model, optimizer, lambda: nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())


def ours(alpha: float, *, random_readout: bool) -> tuple[nn.Module, ScalePlan]:
    def build_here(width: int) -> nn.Module:
        return build(width, random_readout=random_readout)

    plan = make_plan(build_here, width=WIDTH, base_width=BASE, output_multiplier=alpha, readout=READOUT)
    torch.manual_seed(0)
    model = build_here(WIDTH)
    parametrize(model, plan)
    return model, plan


@pytest.mark.parametrize("random_readout", [False, True], ids=["zero", "random"])
@pytest.mark.parametrize("alpha", [2, 3, 16])
def test_losses_equal_those_of_the_mup_package(alpha: float, random_readout: bool) -> None:
    model, plan = ours(alpha, random_readout=random_readout)
    theirs, their_clips = train_mup(model, alpha, random_readout=random_readout)
    losses, clips = train_ours(model, plan)
    assert clips == their_clips
    assert sum(clips) >= STEPS // 2
    assert abs(losses[-1] - losses[0]) > 1e-3
    assert losses == pytest.approx(theirs, rel=0, abs=1e-12)


def test_a_readout_eps_without_the_multiplier_changes_the_losses() -> None:
    model, plan = ours(2, random_readout=True)
    theirs, _ = train_mup(model, 2, random_readout=True)
    losses, _ = train_ours(model, plan, eps_of_readout=EPS)
    assert max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) > 1e-6


def test_clipping_the_folded_gradient_changes_the_losses() -> None:
    model, plan = ours(2, random_readout=True)
    theirs, _ = train_mup(model, 2, random_readout=True)
    groups = param_groups(model, plan, base_lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    losses, _ = losses_of(
        model, torch.optim.AdamW(groups), lambda: nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
    )
    assert max(abs(a - b) for a, b in zip(losses, theirs, strict=True)) > 1e-6


def losses_with(change: Callable[[dict], None]) -> list[float]:
    model, plan = ours(2, random_readout=True)
    groups = param_groups(model, plan, base_lr=RATE, weight_decay=DECAY, eps=EPS, betas=BETAS)
    for group in groups:
        change(group)
    folds = fold_factors(plan)
    return losses_of(model, torch.optim.AdamW(groups), lambda: clip_unfolded(model, folds, CLIP))[0]


@cache
def unchanged() -> list[float]:
    return losses_with(lambda group: None)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "eps"])
@pytest.mark.parametrize("role", ["input", "hidden", "readout", "finite"])
def test_each_factor_of_each_role_changes_the_losses(role: str, key: str) -> None:
    """With one number of one role off by 5 % the losses differ, so the equality above tests every number."""

    def change(group: dict) -> None:
        group[key] *= 1.05 if group["role"] == role else 1

    assert max(abs(a - b) for a, b in zip(losses_with(change), unchanged(), strict=True)) > 1e-9
