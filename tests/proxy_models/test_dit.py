"""DiT in its four block designs: initialization, what reaches the output, roles, and refused sizes."""

import copy
from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muxfer.mup import make_plan, parametrize
from proxy_models import FAMILIES
from proxy_models.dit import DiT
from proxy_models.embed import patches_to_image
from tests.proxy_models.dit_cases import SMALL, batch, every_block
from tests.proxy_models.every_family import randomize


def test_a_block_starts_as_the_identity() -> None:
    model = DiT(**SMALL)
    tokens_BTD = model.x_embedder(batch()[0])
    assert torch.equal(model.blocks[0](tokens_BTD, torch.randn(3, 32)), tokens_BTD)


@every_block
def test_only_modulations_and_the_readout_start_at_zero(block: str) -> None:
    zero = {
        name.split(".", 2)[2] if name.startswith("blocks.") else name
        for name, parameter in DiT(**SMALL, block=block).named_parameters()
        if parameter.ndim > 1 and not parameter.any()
    }
    modulations = {"adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.weight"}
    assert zero == {"final_layer.linear.weight"} | (modulations if block.startswith("adaln") else set())


@every_block
def test_time_and_label_reach_the_output_with_initial_weights(block: str) -> None:
    torch.manual_seed(0)
    model = DiT(**SMALL, block=block)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.1)
        x_BCHW, t_B, y_B = batch()
        out = model(x_BCHW, t_B, y_B)
        by_time, by_label = model(x_BCHW, t_B.flip(0), y_B), model(x_BCHW, t_B, y_B.flip(0))
    for other in (by_time, by_label):
        change_B = (other - out).flatten(1).norm(dim=1) / out.flatten(1).norm(dim=1)
        assert change_B[[0, 2]].min() > 1e-3
        assert change_B[1] == 0


@every_block
def test_time_label_and_position_each_reach_the_output(block: str) -> None:
    model = DiT(**SMALL, block=block)
    randomize(model)
    x_BCHW, t_B, y_B = batch()
    out = model(x_BCHW, t_B, y_B)
    assert not torch.allclose(out, model(x_BCHW, t_B + 1, y_B))
    assert not torch.allclose(out, model(x_BCHW, t_B, (y_B + 1) % 6))
    assert not torch.allclose(out, model(x_BCHW.roll(2, dims=-1), t_B, y_B).roll(-2, dims=-1))


def permute_patches(x_BCHW: torch.Tensor, order_T: torch.Tensor, patch: int) -> torch.Tensor:
    x_BChpwq = x_BCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    x_BTD = x_BChpwq.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return patches_to_image(x_BTD[:, order_T], patch)


@every_block
def test_permuting_patches_with_their_positions_permutes_the_output(block: str) -> None:
    model = DiT(**SMALL, block=block, learn_sigma=True).double()
    randomize(model)
    x_BCHW, t_B, y_B = batch()
    x_BCHW = x_BCHW.double()
    order_T = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    permuted_BCHW = permute_patches(x_BCHW, order_T, 2)
    with torch.no_grad():
        expected = permute_patches(model(x_BCHW, t_B, y_B), order_T, 2)
        assert not torch.allclose(model(permuted_BCHW, t_B, y_B), expected, rtol=1e-2, atol=1e-2)
        model.pos_embed = model.pos_embed[order_T]
        torch.testing.assert_close(model(permuted_BCHW, t_B, y_B), expected, rtol=1e-10, atol=1e-10)


@every_block
def test_every_patch_sees_every_patch(block: str) -> None:
    model = DiT(**{**SMALL, "depth": 1}, block=block)
    randomize(model)
    x_BCHW, t_B, y_B = batch(1)
    x_BCHW.requires_grad_()
    out_BChw = model(x_BCHW, t_B, y_B).unfold(2, 2, 2).unfold(3, 2, 2).sum(dim=(-2, -1))
    for out in out_BChw.sum(dim=(0, 1)).flatten():
        (grad_BCHW,) = torch.autograd.grad(out, x_BCHW, retain_graph=True)
        assert F.max_pool2d(grad_BCHW.abs().amax(dim=1), 2).min() > 1e-4


@every_block
def test_branch_ends_close_every_branch_and_nothing_else(block: str) -> None:
    family = FAMILIES["dit"]
    model = DiT(**{**SMALL, "depth": 1}, block=block)
    randomize(model)
    ends = [name for name, _ in model.named_parameters() if any(fnmatchcase(name, end) for end in family.branch_ends)]
    assert len(ends) == (6 if block == "cross_attention" else 4)
    without = copy.deepcopy(model)
    without.blocks = nn.ModuleList()

    def is_identity(zeroed: list[str]) -> bool:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for name in zeroed:
                changed.get_parameter(name).zero_()
            return torch.equal(changed(*batch()), without(*batch()))

    assert is_identity(ends)
    assert not any(is_identity([name for name in ends if name != kept]) for kept in ends)


def of_width(block: str) -> Callable[[int], DiT]:
    return lambda width: DiT(**{**SMALL, "width": width}, block=block)


@every_block
@pytest.mark.parametrize("width", [64, 128, 256])
def test_the_plan_finds_every_role(block: str, width: int) -> None:
    build = of_width(block)
    plan = make_plan(build, width=width, base_width=64, readout="final_layer.linear.weight")
    inputs = {"x_embedder.proj.weight", "t_embedder.mlp.0.weight", "y_embedder.embedding_table.weight"}
    expected = {
        name: "input" if parameter.ndim == 1 or name in inputs else "hidden"
        for name, parameter in build(width).named_parameters()
    }
    expected |= {"final_layer.linear.weight": "readout", "final_layer.linear.bias": "finite"}
    assert {name: scale.role for name, scale in plan.scales.items()} == expected
    assert all(
        plan.initializations[name] == plan.base_initializations[name]
        for name, role in expected.items()
        if role == "input"
    )


@every_block
def test_hidden_weights_shrink_with_the_width_and_inputs_do_not(block: str) -> None:
    build = of_width(block)
    torch.manual_seed(0)
    model, base = build(256), build(64)
    plan = make_plan(build, width=256, base_width=64, readout="final_layer.linear.weight")
    parametrize(model, plan)
    for (name, parameter), before in zip(model.named_parameters(), base.parameters(), strict=True):
        if before.ndim == 1 or not before.any():
            assert parameter.unique().tolist() == before.unique().tolist(), name
            continue
        expected = before.std().item() * (1 if plan.scales[name].role == "input" else 0.5)
        assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


@every_block
def test_every_design_builds_on_the_meta_device(block: str) -> None:
    with torch.device("meta"):
        model = DiT(**SMALL, block=block)
        out = model(torch.empty(2, 3, 8, 8), torch.empty(2), torch.zeros(2, dtype=torch.long))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert out.shape == (2, 3, 8, 8)


def test_positions_are_a_buffer_outside_the_state_dict() -> None:
    model = DiT(**SMALL)
    assert "pos_embed" in dict(model.named_buffers())
    assert "pos_embed" not in model.state_dict()
    assert model.pos_embed.shape == (16, 32)


def test_an_unknown_block_or_key_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'adaln-zero': expected one of adaln_zero, adaln, cross_attention, in_context"
    ):
        DiT(**SMALL, block="adaln-zero")
    with pytest.raises(TypeError, match="heads"):
        DiT(**SMALL, heads=2)
