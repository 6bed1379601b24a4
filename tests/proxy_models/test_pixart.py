"""PixArt-α is the paper's: its sizes, its initialization, what reaches its output, and its table under μP."""

import math
from functools import partial

import pytest
import torch

from muxfer.config.hydra_compose import compose
from muxfer.config.parse import parse_part
from muxfer.models.count import measure
from muxfer.mup import make_plan, parametrize
from proxy_models import FAMILIES
from proxy_models.pixart import PixArt
from tests.proxy_models.every_family import batch, randomized, sizes_of

SMALL = sizes_of("pixart")


@pytest.mark.parametrize(("width", "billions"), [(1152, 0.61), (288, 0.04)])
def test_the_packaged_size_has_the_papers_parameter_counts(width: int, billions: float) -> None:
    plain = compose("lr-width", ["model=pixart", "+size=pixart_xl_2", f"model.width={width}"])
    model = parse_part("model", plain)
    assert (model.family, model.base_width) == ("pixart", 288)
    assert round(measure(model).parameters / 1e9, 2) == billions


def test_initialization_is_the_references() -> None:
    torch.manual_seed(0)
    model = PixArt(**{**SMALL, "width": 256, "text_dim": 128})
    named = dict(model.named_parameters())
    zero = {name for name, parameter in named.items() if not parameter.any()}
    biases = {name for name in named if name.endswith(".bias")}
    crossing = {f"blocks.{i}.cross_attn.proj.weight" for i in (0, 1)}
    assert zero - biases == {"final_layer.linear.weight", *crossing}
    assert biases <= zero
    expected = {
        "x_embedder.proj.weight": 12**-0.5,  # the reference's Xavier would know the width
        "t_embedder.mlp.0.weight": 0.02,
        "t_embedder.mlp.2.weight": 0.02,
        "t_block.1.weight": 0.02,
        "y_embedder.y_proj.fc1.weight": 0.02,
        "y_embedder.y_proj.fc2.weight": 0.02,
        "blocks.1.scale_shift_table": 256**-0.5,
        "final_layer.scale_shift_table": 256**-0.5,
        "blocks.0.attn.qkv.weight": math.sqrt(2 / (256 + 768)),
        "blocks.0.cross_attn.kv_linear.weight": math.sqrt(2 / (256 + 512)),
        "blocks.1.mlp.fc2.weight": math.sqrt(2 / (256 + 1024)),
    }
    for name, std in expected.items():
        slack = 5 / math.sqrt(2 * named[name].numel())
        assert named[name].std().item() == pytest.approx(std, rel=slack), name


def test_under_mup_tables_keep_the_deviation_of_the_base_width() -> None:
    family = FAMILIES["pixart"]

    def build(width: int) -> PixArt:
        return PixArt(**{**SMALL, "width": width})

    plan_of = partial(make_plan, build, base_width=64, readout=family.readout)
    scales = plan_of(width=256).scales
    roles = {name: scale.role for name, scale in scales.items()}
    assert roles["y_embedder.y_proj.fc1.weight"] == "input"
    assert roles["y_embedder.y_proj.fc2.weight"] == "hidden"
    assert roles["t_block.1.weight"] == "hidden"
    assert roles["blocks.0.scale_shift_table"] == roles["final_layer.scale_shift_table"] == "input"
    assert [name for name, role in roles.items() if role == "readout"] == [family.readout]
    for width in (64, 256):
        torch.manual_seed(0)
        model = build(width)
        drawn = torch.cat([block.scale_shift_table.detach().flatten() for block in model.blocks])
        parametrize(model, plan_of(width=width))
        kept = torch.cat([block.scale_shift_table.detach().flatten() for block in model.blocks])
        torch.testing.assert_close(kept, drawn * (width / 64) ** 0.5, rtol=1e-6, atol=0)
        assert kept.std().item() == pytest.approx(64**-0.5, rel=5 / math.sqrt(2 * kept.numel()))


def test_time_caption_and_position_each_reach_the_output() -> None:
    model, (x_BCHW, t_B, text_BLE, mask_BL) = randomized("pixart"), batch("pixart").values()
    out = model(x_BCHW, t_B, text_BLE, mask_BL)
    others = {
        "time": model(x_BCHW, t_B + 1, text_BLE, mask_BL),
        "caption": model(x_BCHW, t_B, text_BLE.flip(0), mask_BL),
        "column": model(x_BCHW.roll(2, dims=-1), t_B, text_BLE, mask_BL).roll(-2, dims=-1),
        "row": model(x_BCHW.roll(2, dims=-2), t_B, text_BLE, mask_BL).roll(-2, dims=-2),
    }
    for what, other in others.items():  # by far more than another order of summation does
        assert (other - out).abs().max() > 0.01 * out.std(), what


def test_tokens_reach_the_output_and_padding_does_not() -> None:
    model, (x_BCHW, t_B, text_BLE, mask_BL) = randomized("pixart"), batch("pixart").values()
    out = model(x_BCHW, t_B, text_BLE, mask_BL)
    noise_BLE = 100 * torch.randn(text_BLE.shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(out, model(x_BCHW, t_B, torch.where(mask_BL[..., None], text_BLE, noise_BLE), mask_BL))
    alone = model(x_BCHW[1:2], t_B[1:2], text_BLE[1:2, :3], mask_BL[1:2, :3])
    torch.testing.assert_close(alone, out[1:2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, model(x_BCHW, t_B, torch.where(mask_BL[..., None], noise_BLE, text_BLE), mask_BL))


def test_the_blocks_share_one_modulation_and_each_adds_its_table() -> None:
    model, (x_BCHW, t_B, text_BLE, mask_BL) = randomized("pixart"), batch("pixart").values()
    out = model(x_BCHW, t_B, text_BLE, mask_BL)
    shift_6D = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.t_block[1].bias.add_(shift_6D.flatten())
        for block in model.blocks:
            block.scale_shift_table.sub_(shift_6D)
    torch.testing.assert_close(model(x_BCHW, t_B, text_BLE, mask_BL), out, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        model.blocks[1].scale_shift_table.add_(shift_6D)
    assert not torch.allclose(model(x_BCHW, t_B, text_BLE, mask_BL), out, rtol=1e-2, atol=1e-2)


def test_random_weights_all_get_gradients() -> None:
    model = randomized("pixart", learn_sigma=True)
    out = model(**batch("pixart"))
    assert out.shape == (3, 6, 8, 8)
    out.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
