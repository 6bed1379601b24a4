"""The text-to-image transformers of the scaling laws: what they cost, what each token sees, what must not matter."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from muxfer.config.models import CrossAttention, InContext, Uvit
from muxfer.models.build import conditioning
from muxfer.models.count import measure
from muxfer.models.families import family_of
from muxfer.mup import make_plan
from proxy_models.cross_attention import Block as CrossBlock
from proxy_models.cross_attention import CrossAttentionTransformer
from proxy_models.dit import AdaLNZeroBlock
from proxy_models.in_context import InContextTransformer
from proxy_models.uvit import UViT
from tests.proxy_models import every_family
from tests.proxy_models.every_family import randomize

SMALL = every_family.sizes_of("in_context")
SIZES = {UViT: {**SMALL, "depth": 5, "text_length": 9}}
ALL = pytest.mark.parametrize("kind", [InContextTransformer, CrossAttentionTransformer, UViT])
BOTH = pytest.mark.parametrize("kind", [InContextTransformer, CrossAttentionTransformer])
FAMILY = pytest.mark.parametrize("family", ["in_context", "cross_attention"])
CONFIGS: Mapping[str, Callable[..., Any]] = {"in_context": InContext, "cross_attention": CrossAttention, "uvit": Uvit}


def built(kind: type, **change: Any) -> Any:
    model = kind(**{**SIZES.get(kind, SMALL), **change})
    randomize(model)
    return model


def batch(size: int = 3) -> dict[str, torch.Tensor]:
    """Image, time, text and its mask."""
    return every_family.batch("in_context", size)


def config(family: str, **change: Any) -> Any:
    sizes = {"width": 64, "depth": 3, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 1, "text_dim": 32}
    return CONFIGS[family](**{"family": family, "base_width": 64, **sizes, **change})


@FAMILY
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_cost_follows_the_formula(family: str, learn_sigma: bool) -> None:
    width, depth, patches, words, text_dim, pixels = 64, 3, 16, 7, 32, 4
    out = pixels * (1 + learn_sigma)
    square = width**2
    embedders = (pixels + 1) * width + (256 + 1) * width + square + width + (text_dim + 1) * width + square + width
    ends = patches * pixels * width + patches * width * out + 256 * width + square + words * (text_dim * width + square)
    attention, mlp = 4 * square + 4 * width, 8 * square + 5 * width
    if family == "in_context":
        sequence = 1 + words + patches
        parameters = embedders + depth * (attention + mlp + 4 * width) + 2 * width + (width + 1) * out
        macs = ends + depth * (sequence * 12 * square + 2 * sequence**2 * width)
    else:
        modulation, final = 6 * (square + width), 2 * (square + width) + (width + 1) * out
        parameters = embedders + depth * (2 * attention + mlp + modulation + 2 * width) + final
        self_attention = patches * 4 * square + 2 * patches**2 * width
        cross = patches * 2 * square + words * 2 * square + 2 * patches * words * width
        macs = ends + depth * (self_attention + cross + patches * 8 * square + 6 * square) + 2 * square
    cost = measure(config(family, learn_sigma=learn_sigma), captions=["one scan of the digit seven"])
    assert (cost.parameters, cost.macs) == (parameters, macs)


def test_cross_attention_block_equals_dits_without_the_caption() -> None:
    """DiT's block where the caption says nothing; x + attention(norm(x), caption) where the gates are closed."""
    block = CrossBlock(32, 16, 4.0)
    randomize(block)
    generator = torch.Generator().manual_seed(3)
    x_BTD, text_BLD = torch.randn(2, 7, 32, generator=generator), torch.randn(2, 4, 32, generator=generator)
    c_BD, mask_BL = torch.randn(2, 32, generator=generator), torch.ones(2, 4, dtype=torch.bool)
    silent = {name: value * ("cross_attn.proj" not in name) for name, value in block.state_dict().items()}
    closed = {name: value * ("adaLN_modulation" not in name) for name, value in block.state_dict().items()}
    dits = AdaLNZeroBlock(32, 16, 4.0)
    dits.load_state_dict({name: value for name, value in silent.items() if "cross" not in name})
    block.load_state_dict(silent)
    torch.testing.assert_close(block(x_BTD, c_BD, text_BLD, mask_BL), dits(x_BTD, c_BD))
    block.load_state_dict(closed)
    expected = x_BTD + block.cross_attn(block.norm_cross(x_BTD), text_BLD, mask_BL)
    torch.testing.assert_close(block(x_BTD, c_BD, text_BLD, mask_BL), expected)


@BOTH
def test_time_and_text_reach_the_output(kind: type) -> None:
    model, inputs = built(kind, learn_sigma=True), batch()
    out = model(**inputs)
    assert out.shape == (3, 6, 8, 8)
    for name, step in (("t_B", 100), ("text_BLE", 1)):
        changed = model(**{**inputs, name: inputs[name] + step})
        assert (changed - out).abs().amax(dim=(1, 2, 3)).min() > 1e-3, name


@ALL
def test_every_patch_sees_every_patch_and_every_caption_token(kind: type) -> None:
    model, inputs = built(kind, depth=1), batch(1)
    wanted = [inputs[name].requires_grad_() for name in ("x_BCHW", "text_BLE")]
    dx_BCHW, dtext_BLE = torch.autograd.grad(model(**inputs)[0, 0, 0, 0], wanted)
    assert (dx_BCHW.abs().amax(dim=1) > 0).all()
    assert (dtext_BLE.abs().amax(dim=-1) > 0).all()


def test_only_in_context_do_caption_tokens_depend_on_the_image() -> None:
    """In one sequence the caption's tokens change with the image; cross-attention reads the same ones in all blocks."""
    seen: dict[type, list[torch.Tensor]] = {}
    for kind, where in ((InContextTransformer, 0), (CrossAttentionTransformer, 2)):
        model, inputs = built(kind), batch()
        for scale in (1, 2):
            hook = model.blocks[1].register_forward_pre_hook(
                lambda _, given, kind=kind, where=where: seen.setdefault(kind, []).append(given[where])
            )
            model(**{**inputs, "x_BCHW": scale * inputs["x_BCHW"]})
            hook.remove()
    before, after = (tokens[:, 1:5] for tokens in seen[InContextTransformer])
    assert (before - after).abs().amax(dim=-1).min() > 1e-3
    assert torch.equal(*seen[CrossAttentionTransformer])


@BOTH
def test_the_order_of_patches_enters_by_positions_only_and_that_of_captions_not_at_all(kind: type) -> None:
    model, inputs = built(kind), batch()
    rolled = {**inputs, "x_BCHW": inputs["x_BCHW"].roll(2, dims=-1)}
    flipped = {**inputs, "text_BLE": inputs["text_BLE"].flip(1), "mask_BL": inputs["mask_BL"].flip(1)}
    out = model(**inputs)
    torch.testing.assert_close(out, model(**flipped), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, model(**rolled).roll(-2, dims=-1), atol=1e-2)
    model.pos_embed.zero_()
    torch.testing.assert_close(model(**inputs), model(**rolled).roll(-2, dims=-1), rtol=1e-4, atol=1e-5)


@ALL
def test_padding_has_no_influence(kind: type) -> None:
    model, inputs = built(kind), batch()
    out = model(**inputs)
    text_BLE, mask_BL = inputs["text_BLE"], inputs["mask_BL"]
    other = torch.where(mask_BL[..., None], text_BLE, text_BLE + 5)
    assert torch.equal(out, model(**{**inputs, "text_BLE": other}))
    longer = {"text_BLE": torch.cat([text_BLE, other], 1), "mask_BL": torch.cat([mask_BL, mask_BL & False], 1)}
    torch.testing.assert_close(out, model(**{**inputs, **longer}), rtol=1e-4, atol=1e-5)
    whole = model(**{**inputs, "mask_BL": torch.ones_like(mask_BL)})
    assert not torch.allclose(out[1:], whole[1:], atol=1e-3)
    torch.testing.assert_close(out[0], whole[0], rtol=1e-4, atol=1e-5)
    if kind is UViT:  # as in the reference, where every token counts
        unmasked = {name: value for name, value in inputs.items() if name != "mask_BL"}
        torch.testing.assert_close(model(**unmasked), whole)


@BOTH
def test_all_weights_get_gradients_within_three_steps(kind: type) -> None:
    """First the readout gets a gradient, then the layers before it, then those in branches with zero gates."""
    torch.manual_seed(0)
    model, inputs = kind(**SMALL), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(**inputs) - inputs["x_BCHW"]).square().mean().backward()
        silent = [name for name, parameter in model.named_parameters() if not parameter.grad.norm() > 0]
        optimizer.step()
    assert silent == []


@BOTH
def test_initial_input_weights_do_not_depend_on_the_width(kind: type) -> None:
    plan = make_plan(lambda width: kind(**{**SMALL, "width": width}), width=256, base_width=32, readout=None)
    for name, scale in plan.scales.items():
        if scale.role in ("input", "finite"):
            assert plan.initializations[name] == plan.base_initializations[name], name
    assert plan.initializations["y_embedder.mlp.0.weight"].std == pytest.approx(6**-0.5)
    assert plan.initializations["t_embedder.mlp.0.weight"].std == (
        0.02 if kind is CrossAttentionTransformer else 1 / 16
    )
    zero = {
        name
        for name, initialization in plan.initializations.items()
        if initialization.mean == initialization.std == 0 and not name.endswith("bias")
    }
    modulations = {name for name in plan.initializations if name.endswith("adaLN_modulation.1.weight")}
    assert zero == {*modulations, "final_layer.linear.weight"}


ROLES = {
    "x_embedder.proj.weight": "input",
    "t_embedder.mlp.0.weight": "input",
    "t_embedder.mlp.2.weight": "hidden",
    "y_embedder.mlp.0.weight": "input",
    "y_embedder.mlp.2.weight": "hidden",
    "blocks.0.attn.qkv.weight": "hidden",
    "blocks.0.mlp.fc2.bias": "input",
    "final_layer.linear.weight": "readout",
    "final_layer.linear.bias": "finite",
}
OWN_ROLES = {
    "in_context": {"blocks.0.norm1.weight": "input"},
    "cross_attention": {
        "blocks.0.adaLN_modulation.1.weight": "hidden",
        "blocks.0.norm_cross.weight": "input",
        "blocks.0.cross_attn.q_linear.weight": "hidden",
        "blocks.0.cross_attn.kv_linear.weight": "hidden",
    },
}


@FAMILY
@pytest.mark.parametrize("width", [64, 128, 256])
def test_the_plan_finds_one_readout(family: str, width: int) -> None:
    found = family_of(config(family))
    plan = make_plan(found.build, width=width, base_width=64, readout=found.readout, declared=found.declared)
    roles = {name: scale.role for name, scale in plan.scales.items()}
    assert [name for name, role in roles.items() if role == "readout"] == ["final_layer.linear.weight"]
    expected = {**ROLES, **OWN_ROLES[family]}
    assert {name: roles[name] for name in expected} == expected
    assert all(
        initialization is not None and initialization.recorded for initialization in plan.initializations.values()
    )


@pytest.mark.parametrize("family", CONFIGS)
def test_a_label_is_replaced_by_its_caption(family: str) -> None:
    task = config(family, text_dim=6)
    model = family_of(task).build(64)
    randomize(model)
    predict = conditioning(task, ["a one", "a two"])
    x_BCHW = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    outs = [predict(model, x_BCHW, torch.tensor([1.0, 2.0]), torch.tensor([label, 2])) for label in (0, 1)]
    assert not torch.allclose(outs[0][0], outs[1][0], atol=1e-3)
    assert torch.equal(outs[0][1], outs[1][1])


@FAMILY
def test_the_configuration_builds_the_family(family: str, make_config) -> None:
    model = make_config(f"model={family}", "model.depth=3").model
    assert measure(model) == measure(config(family))
