"""MMDiT is Stable Diffusion 3's: its size, its outputs as diffusers computes them, its two streams and their roles."""

from typing import Any

import diffusers
import pytest
import torch

from muxfer.config.models import Mmdit
from muxfer.models.diffusers_weights import to_diffusers
from muxfer.models.families import family_of
from muxfer.mup import make_plan
from proxy_models.mmdit import JointBlock, MMDiT
from tests.models.from_diffusers import from_diffusers
from tests.proxy_models.every_family import randomize
from tests.proxy_models.mmdit_cases import REPA, SMALL, batch, config, randomized


def with_diffusers(model: MMDiT, settings: Mmdit) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    class_name, arguments, state = to_diffusers(settings, model.state_dict())
    assert class_name == "SD3Transformer2DModel"
    reference = diffusers.SD3Transformer2DModel(**arguments).eval()
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["pos_embed.pos_embed"], [])
    return reference, state


SHAPES: dict[str, dict[str, Any]] = {
    "two blocks": {},
    "one block, no text after it": {"depth": 1},
    "three blocks, four heads, patch 1": {"depth": 3, "width": 64, "patch": 1, "image_size": 4},
    "patch 4, one channel": {"patch": 4, "channels": 1, "image_size": 16},
    "learned variance": {"learn_sigma": True},
}


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_outputs_equal_those_of_diffusers(changes: dict[str, Any], qk_norm: bool) -> None:
    changes = {**changes, "qk_norm": qk_norm}
    model = randomized(**changes)
    reference, _ = with_diffusers(model, config(**changes))
    x_BCHW, t_B, text_BLE, pooled_BP = batch(**changes)
    with torch.no_grad():
        ours = model(x_BCHW, t_B, text_BLE, pooled_BP)
        theirs = reference(x_BCHW, timestep=t_B, encoder_hidden_states=text_BLE, pooled_projections=pooled_BP).sample
    channels = model.final_layer.linear.out_features // model.patch**2
    assert ours.shape == (3, channels, *x_BCHW.shape[2:])
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_weights_come_back_from_diffusers_bit_for_bit(qk_norm: bool) -> None:
    model = randomized(qk_norm=qk_norm)
    settings = config(qk_norm=qk_norm)
    reference, given = with_diffusers(model, settings)
    held = reference.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in given.items())
    back = from_diffusers(settings, held)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_the_projector_is_not_exported() -> None:
    plain, aligned = randomized(), randomized(**REPA)
    carried = to_diffusers(config(**REPA), aligned.state_dict())
    assert carried[:2] == to_diffusers(config(), plain.state_dict())[:2]
    back = from_diffusers(config(), carried[2])
    assert back.keys() == plain.state_dict().keys()
    plain.load_state_dict(back)
    assert torch.equal(plain(*batch()), aligned(*batch()))


def test_a_block_starts_as_the_identity() -> None:
    image, text = torch.randn(3, 16, 32), torch.randn(3, 4, 32)
    after = MMDiT(**SMALL).joint_blocks[0](image, text, torch.randn(3, 32))
    assert torch.equal(after[0], image)
    assert torch.equal(after[1], text)


def test_only_modulations_and_the_readout_start_at_zero() -> None:
    """Queries above all: under QK-norm a zero query has no direction, and its gradient no bound."""
    model: Any = MMDiT(**SMALL, **REPA)
    zero = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and not parameter.any()}
    modulations = {name for name, _ in model.named_parameters() if name.endswith("adaLN_modulation.1.weight")}
    assert len(modulations) == 5
    assert zero == modulations | {"final_layer.linear.weight"}
    for block in model.joint_blocks:
        for stream in (block.x_block, block.context_block):
            assert stream.attn.qkv.weight[:32].std() > 0.1


def test_time_caption_pooled_caption_and_position_each_reach_the_output() -> None:
    model = randomized()
    x_BCHW, t_B, text_BLE, pooled_BP = batch()
    out = model(x_BCHW, t_B, text_BLE, pooled_BP)
    others = (
        model(x_BCHW, t_B + 1, text_BLE, pooled_BP),
        model(x_BCHW, t_B, text_BLE + 0.1, pooled_BP),
        model(x_BCHW, t_B, text_BLE, pooled_BP + 0.1),
        model(x_BCHW.roll(2, dims=-1), t_B, text_BLE, pooled_BP).roll(-2, dims=-1),
    )
    for other in others:
        assert (other - out).abs().mean() > 1e-3


def test_the_order_of_caption_tokens_does_not_matter() -> None:
    model = randomized(depth=3)
    x_BCHW, t_B, text_BLE, pooled_BP = batch(length=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        model(x_BCHW, t_B, text_BLE[:, order], pooled_BP), model(x_BCHW, t_B, text_BLE, pooled_BP), rtol=1e-5, atol=1e-5
    )


def test_each_stream_sees_itself_and_the_other() -> None:
    """One token's gradient reaches every token of both streams after one block."""
    block = JointBlock(32, 16, 4.0, qk_norm=True, context_pre_only=False)
    randomize(block)
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(1, 5, 32, generator=generator, requires_grad=True)
    text = torch.randn(1, 3, 32, generator=generator, requires_grad=True)
    for after in block(image, text, torch.randn(1, 32, generator=generator)):
        seen = torch.autograd.grad(after[0, 0].sum(), (image, text), retain_graph=True)
        for gradient, tokens in zip(seen, (5, 3), strict=True):
            assert gradient.shape[1] == tokens
            assert (gradient.abs().amax(-1) > 1e-6).all()


def test_the_last_block_uses_only_keys_and_values_of_the_text() -> None:
    model = randomized()
    last = model.joint_blocks[-1]
    assert {name for name, _ in last.context_block.named_parameters()} == {
        *("attn.qkv.weight", "attn.qkv.bias", "attn.ln_q.weight", "attn.ln_k.weight"),
        *("adaLN_modulation.1.weight", "adaLN_modulation.1.bias"),
    }
    assert last.context_block.adaLN_modulation[1].out_features == 2 * 32
    text_BLD = torch.randn(2, 4, 32)
    assert last(torch.randn(2, 16, 32), text_BLD, torch.randn(2, 32))[1] is text_BLD
    model(*batch()).square().mean().backward()
    queries, keys, values = last.context_block.attn.qkv.weight.grad.abs().amax(1).chunk(3)
    assert queries.max() == 0
    assert keys.min() > 0
    assert values.min() > 0


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_removes_the_size_of_queries_and_keys(qk_norm: bool) -> None:
    model = randomized(qk_norm=qk_norm)
    out = model(*batch())
    with torch.no_grad():
        for block in model.joint_blocks:
            for stream in (block.x_block, block.context_block):
                stream.attn.qkv.weight[:64] *= 10
                stream.attn.qkv.bias[:64] *= 10
    changed = (model(*batch()) - out).abs().max().item()
    assert changed < 1e-3 if qk_norm else changed > 0.1


def test_initial_input_weights_do_not_depend_on_the_width() -> None:
    torch.manual_seed(0)
    for width in (64, 1024):
        model = MMDiT(**{**SMALL, "width": width, "depth": 1, "text_dim": 16})
        expected = {"x_embedder.proj": 12**-0.5, "context_embedder": 16**-0.5}
        expected |= {"t_embedder.mlp.0": 0.02, "y_embedder.mlp.0": 0.02}
        for name, std in expected.items():
            assert model.get_parameter(f"{name}.weight").std().item() == pytest.approx(std, rel=0.15), name


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("options", [{}, {"qk_norm": False}, REPA], ids=["qk_norm", "no norm", "repa"])
def test_a_plan_finds_the_roles(width: int, options: dict[str, Any]) -> None:
    model = config(**{"width": width, "base_width": 64, **options})
    family = family_of(model)
    plan = make_plan(
        family.build, width=width, base_width=64, readout=family.readout, declared=family.declared, output_multiplier=2
    )
    roles: dict[str, set[str]] = {}
    for name, scale in plan.scales.items():
        roles.setdefault(scale.role, set()).add(name)
    projects = model.repa_depth is not None
    assert roles["readout"] == {"final_layer.linear.weight", *(["projector.0.weight"] if projects else [])}
    finite = {"final_layer.linear.bias"}
    if model.qk_norm:
        streams = [f"joint_blocks.{i}.{stream}" for i in range(2) for stream in ("x_block", "context_block")]
        finite |= {f"{stream}.attn.ln_{letter}.weight" for stream in streams for letter in "qk"}
    if projects:
        finite |= {"projector.0.bias", *(f"projector.{i}.{kind}" for i in (2, 4) for kind in ("weight", "bias"))}
    assert roles["finite"] == finite
    assert {name for name in roles["input"] if name.endswith(".weight")} == {
        *("x_embedder.proj.weight", "context_embedder.weight", "t_embedder.mlp.0.weight", "y_embedder.mlp.0.weight")
    }
    assert all(
        initialization is not None and initialization.recorded for initialization in plan.base_initializations.values()
    )
    if projects:  # the output multiplier is the declared readout's alone
        folds = [plan.scales[name].fold for name in ("final_layer.linear.weight", "projector.0.weight")]
        assert folds == [2 * 64 / width, 64 / width]


def test_reset_parameters_redraws_every_parameter() -> None:
    states = []
    for model in (MMDiT(**SMALL, **REPA), randomized(**REPA)):
        torch.manual_seed(0)
        model.reset_parameters()
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repa_depth": 1}, "expected both or neither"),
        ({"repa_dim": 4}, "expected both or neither"),
        ({"repa_depth": 3, "repa_dim": 4}, "repa_depth 3: expected 1 to depth 2"),
    ],
)
def test_half_a_projector_or_one_beyond_the_depth_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMDiT(**{**SMALL, **change})
