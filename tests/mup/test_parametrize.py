"""A plan changes the model's values and the optimizer's groups, and nothing else of the model."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from muxfer.errors import BadInput
from muxfer.mup import (
    ScalePlan,
    fold_factors,
    make_plan,
    param_groups,
    parametrize,
    validate_optimizer,
    validate_same_base,
)
from proxy_models import FAMILIES

READOUT = FAMILIES["dit"].readout
RATES = {"base_lr": 0.5, "weight_decay": 0.25, "eps": 1e-3, "betas": (0.9, 0.95)}


def build(width: int) -> nn.Module:
    """A DiT without zero weights, so that every deviation can be measured."""
    model = FAMILIES["dit"].build(width=width, depth=2, head_dim=16, patch=2, image_size=8, channels=1, num_classes=10)
    for name, parameter in model.named_parameters():
        if name == READOUT or "adaLN_modulation.1.weight" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def plan_for(width: int, make: Callable[[int], nn.Module] = build, **kwargs) -> ScalePlan:
    return make_plan(make, width=width, base_width=64, **{"readout": READOUT if make is build else None, **kwargs})


def fresh(width: int, make: Callable[[int], nn.Module] = build, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make(width)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict(keep_vars=True).items()}


@pytest.mark.parametrize("parametrization", ["mup", "standard", "stock"])
def test_weights_are_bit_identical_at_the_base_width(parametrization: str) -> None:
    model = fresh(64)
    before = bits(model)
    parametrize(model, plan_for(64, parametrization=parametrization))
    assert bits(model) == before


def test_at_the_base_width_the_multiplier_changes_the_readout_only() -> None:
    model, untouched = fresh(64), fresh(64)
    parametrize(model, plan_for(64, output_multiplier=4.0))
    changed = {name for name, value in bits(model).items() if value != bits(untouched)[name]}
    assert changed == {READOUT}
    assert torch.equal(model.get_parameter(READOUT), 4 * untouched.get_parameter(READOUT))


def test_stock_changes_no_weight_at_any_width() -> None:
    model = fresh(256)
    before = bits(model)
    plan = plan_for(256, parametrization="stock")
    parametrize(model, plan)
    assert bits(model) == before
    # Xavier's own deviation at four times the width, and a constant 0.02.
    assert plan.scales["blocks.0.attn.proj.weight"].init_std == pytest.approx(0.5)
    assert plan.scales["t_embedder.mlp.2.weight"].init_std == 1


@pytest.mark.parametrize("parametrization", ["mup", "standard"])
def test_deviations_are_those_of_the_base_width_times_the_factor(parametrization: str) -> None:
    model = fresh(256)
    plan = plan_for(256, parametrization=parametrization, output_multiplier=2.0)
    parametrize(model, plan)
    for name, parameter in model.named_parameters():
        initialization = plan.base_initializations[name]
        assert initialization is not None
        expected = initialization.std * plan.scales[name].init_std
        assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
    assert model.t_embedder.mlp[2].weight.std().item() == pytest.approx(0.01, rel=0.02)
    readout = 0.02 * 2 / 4 if parametrization == "mup" else 0.02 * 2 / 2
    assert model.get_parameter(READOUT).std().item() == pytest.approx(readout, rel=0.06)


def test_scaling_multiplies_each_tensor_by_one_factor() -> None:
    model, untouched = fresh(256), fresh(256)
    parametrize(model, plan_for(256))
    for name, parameter in model.named_parameters():
        own = untouched.get_parameter(name).flatten()
        factor = (own @ parameter.flatten() / (own @ own)).item() if own.any() else 1.0
        torch.testing.assert_close(parameter.flatten(), own * factor)


class Odd(nn.Module):
    """Padding rows, orthogonality, a mean, zeros, buffers and frozen weights, which scaling keeps; and a constant."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, width, padding_idx=2)
        self.turn = nn.Linear(width, width, bias=False)
        self.shifted = nn.Parameter(torch.randn(width) * width**-0.5 + 3.0)
        self.gain = nn.Parameter(torch.full((width,), 1.0 / width))
        self.partial = nn.Linear(width, width)
        self.teacher = nn.Linear(width, width).requires_grad_(False)
        self.register_buffer("table_of_positions", torch.ones(width) * width)
        nn.init.orthogonal_(self.turn.weight)
        nn.init.zeros_(self.partial.weight.data[: width // 2])
        nn.init.normal_(self.partial.weight.data[width // 2 :], std=0.02)


def test_scaling_keeps_zeros_orthogonality_and_means() -> None:
    model, untouched = fresh(256, Odd), fresh(256, Odd)
    parametrize(model, plan_for(256, Odd))
    assert torch.equal(model.table.weight[2], torch.zeros(256))
    assert torch.equal(model.table.weight, untouched.table.weight)
    gram = model.turn.weight @ model.turn.weight.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(256), rtol=0, atol=1e-5)
    assert gram[0, 0].item() == pytest.approx(1, rel=1e-4)
    assert model.shifted.mean().item() == pytest.approx(3, abs=0.05)
    assert model.shifted.std().item() == pytest.approx(64**-0.5, rel=0.2)
    assert torch.equal(model.gain, torch.full((256,), 1 / 64))
    assert not model.partial.weight[:128].any()
    assert model.partial.weight[128:].std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(model.teacher.weight, untouched.teacher.weight)
    assert torch.equal(model.table_of_positions, untouched.table_of_positions)


def test_a_constant_readout_is_folded() -> None:
    def make(width: int) -> nn.Module:
        linear = nn.Linear(width, 3)
        nn.init.constant_(linear.weight, 0.5)
        return linear

    model = fresh(256, make)
    parametrize(model, plan_for(256, make, readout="weight", output_multiplier=2.0))
    assert torch.equal(model.weight, torch.full((3, 256), 0.25))


def test_nothing_is_attached_to_the_model() -> None:
    model = fresh(256)
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    plan = plan_for(256)
    parametrize(model, plan)
    param_groups(model, plan, **RATES)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    assert not any(vars(parameter) for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_scaling_twice_is_refused() -> None:
    model, plan = fresh(256), plan_for(256)
    parametrize(model, plan)
    before = bits(model)
    with pytest.raises(BadInput, match="scaled before"):
        parametrize(model, plan)
    with pytest.raises(BadInput, match="not freshly initialized"):
        parametrize(copy.deepcopy(model), plan)
    assert bits(model) == before


def test_weights_off_their_initialization_are_refused_before_any_change() -> None:
    model, plan = fresh(256), plan_for(256)
    with torch.no_grad():
        model.final_layer.linear.bias.add_(1e-3)
    before = bits(model)
    with pytest.raises(BadInput, match=r"final_layer.linear.bias deviates"):
        parametrize(model, plan)
    assert bits(model) == before


def test_a_plan_for_another_width_or_model_is_refused() -> None:
    plan = plan_for(256)
    with pytest.raises(BadInput, match="for another model.* plan of width 256"):
        parametrize(fresh(128), plan)
    with pytest.raises(BadInput, match="missing"):
        param_groups(nn.Linear(3, 4), plan, **RATES)
    with pytest.raises(BadInput, match="meta device"), torch.device("meta"):
        parametrize(build(256), plan)


def test_a_tensor_constant_at_one_width_and_random_at_another_is_refused() -> None:
    def make(width: int) -> nn.Module:
        linear = nn.Linear(width, width)
        if width > 64:
            nn.init.zeros_(linear.weight)
        return linear

    with pytest.raises(BadInput, match="weight is random at base width 64 and not at 256"):
        parametrize(fresh(256, make), plan_for(256, make))


def test_groups_hold_every_parameter_once_with_its_own_numbers() -> None:
    model, plan = fresh(256), plan_for(256, output_multiplier=2.0)
    groups = param_groups(model, plan, **RATES)
    assert {group["role"]: (group["lr"], group["weight_decay"], group["eps"], group["betas"]) for group in groups} == {
        "input": (0.5, 0.25, 1e-3 / 4, (0.9, 0.95)),
        "hidden": (0.5 / 4, 1.0, 1e-3 / 4, (0.9, 0.95)),
        "readout": (0.25, 0.5, 1e-3 / 2, (0.9, 0.95)),
        "finite": (0.5, 0.25, 1e-3, (0.9, 0.95)),
    }
    named = {name: p for group in groups for name, p in zip(group["names"], group["params"], strict=True)}
    assert named.keys() == dict(model.named_parameters()).keys()
    assert all(parameter is model.get_parameter(name) for name, parameter in named.items())
    optimizer = torch.optim.AdamW(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in groups]


def test_only_the_declared_readout_takes_the_multiplier() -> None:
    def make(width: int) -> nn.Module:
        return nn.ModuleDict({"out": nn.Linear(width, 3), "side": nn.Linear(width, 3)})

    plan = plan_for(256, make, readout="out.weight", output_multiplier=2.0)
    assert fold_factors(plan) == {"out.weight": 0.5, "out.bias": 1, "side.weight": 0.25, "side.bias": 1}
    assert plan.scales["side.weight"].eps == 1
    assert plan.scales["out.weight"].eps == 0.5


def test_a_plan_fits_copies_state_dicts_and_wrappers() -> None:
    model, plan = fresh(256), plan_for(256)
    parametrize(model, plan)
    other = build(256)
    other.load_state_dict(model.state_dict())

    def shown(any_model: nn.Module) -> list[tuple]:
        return [(g["lr"], g["eps"], g["names"]) for g in param_groups(any_model, plan, **RATES)]

    expected = shown(model)
    for copied in (other, copy.deepcopy(model), torch.compile(model), nn.Sequential()):
        if isinstance(copied, nn.Sequential):
            copied.add_module("module", model)  # as DistributedDataParallel names it
        assert shown(copied) == expected


def test_a_plan_survives_plain_data_and_its_hash_follows_its_content() -> None:
    plan = plan_for(256)
    assert ScalePlan.from_dict(plan.to_dict()) == plan
    assert ScalePlan.from_dict(plan.to_dict()).hash == plan.hash == plan_for(256).hash
    others = [plan_for(128), plan_for(256, output_multiplier=2.0), plan_for(256, parametrization="standard")]
    assert len({plan.hash, *(other.hash for other in others)}) == 4


@pytest.mark.parametrize(
    ("parametrization", "expected"),
    [("mup", "5524a4d82e6972d7"), ("standard", "be26b6bd6c221bed"), ("stock", "6abec238c00eb7fa")],
)
def test_plan_hashes_are_those_of_earlier_versions(parametrization: str, expected: str) -> None:
    """A target's record holds its plan's hash. These were printed by the version before depth scaling."""

    def make(width: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 3))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)
        return model

    plan = plan_for(256, make, readout="2.weight", parametrization=parametrization, depth=4, base_depth=4)
    assert plan.hash == expected
    assert ScalePlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.RAdam])
def test_optimizers_outside_the_adam_family_are_refused(optimizer_class: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(BadInput, match=f"{optimizer_class.__name__} is not of the Adam family; use AdamW"):
        validate_optimizer(optimizer_class)


def test_adam_is_refused_with_l2_decay_only() -> None:
    validate_optimizer(torch.optim.Adam)
    validate_optimizer(torch.optim.AdamW, weight_decay=0.1)
    with pytest.raises(BadInput, match="use AdamW"):
        validate_optimizer(torch.optim.Adam, weight_decay=0.1)


def test_a_target_with_another_base_is_refused() -> None:
    source = plan_for(128)
    validate_same_base(source, plan_for(256))
    validate_same_base(source.to_dict(), plan_for(256))
    with pytest.raises(BadInput, match="base_width 128, its source 64"):
        validate_same_base(source, replace(plan_for(256), base_width=128))
    with pytest.raises(BadInput, match="parametrization standard"):
        validate_same_base(source, plan_for(256, parametrization="standard"))
