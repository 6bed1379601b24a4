"""DiT computes what diffusers' class computes, and two of its blocks are one with gates of one."""

import diffusers
import pytest
import torch

from proxy_models.dit import AdaLNBlock, AdaLNZeroBlock, DiT
from tests.proxy_models.dit_cases import SMALL, batch
from tests.proxy_models.every_family import randomize


def to_diffusers(model: DiT, reference: diffusers.DiTTransformer2DModel) -> None:
    ours = model.state_dict()
    theirs = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    state = {f"{name}.{kind}": ours[f"{own}.{kind}"] for name, own in theirs.items() for kind in ("weight", "bias")}
    for i in range(len(model.blocks)):
        block, own_block = f"transformer_blocks.{i}", f"blocks.{i}"
        names = {
            "norm1.linear": f"{own_block}.adaLN_modulation.1",
            "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "attn1.to_out.0": f"{own_block}.attn.proj",
            "ff.net.0.proj": f"{own_block}.mlp.fc1",
            "ff.net.2": f"{own_block}.mlp.fc2",
        }
        for kind in ("weight", "bias"):
            state |= {f"{block}.{name}.{kind}": ours[f"{own}.{kind}"] for name, own in names.items()}
            for letter, part in zip("qkv", ours[f"{own_block}.attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{block}.attn1.to_{letter}.{kind}"] = part
        state[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = ours["y_embedder.embedding_table.weight"]
    reference.load_state_dict(state)


SHAPES = [
    {},
    {"width": 48, "head_dim": 24, "depth": 1, "patch": 4, "image_size": 16, "channels": 1, "num_classes": 2},
    {"width": 64, "head_dim": 8, "depth": 3, "patch": 1, "image_size": 4, "channels": 4, "num_classes": 10},
    {"width": 72, "head_dim": 72, "image_size": 12, "channels": 4, "num_classes": 1},
]


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_equal_those_of_diffusers(shape: dict[str, int], learn_sigma: bool) -> None:
    sizes = SMALL | shape
    channels, side = sizes["channels"], sizes["image_size"]
    model = DiT(**sizes, learn_sigma=learn_sigma, frequency_shift=1.0)
    randomize(model)
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=sizes["width"] // sizes["head_dim"],
        attention_head_dim=sizes["head_dim"],
        in_channels=channels,
        out_channels=2 * channels if learn_sigma else channels,
        num_layers=sizes["depth"],
        sample_size=side,
        patch_size=sizes["patch"],
        num_embeds_ada_norm=sizes["num_classes"],
        norm_eps=1e-6,
    ).eval()
    to_diffusers(model, reference)
    x_BCHW, t_B, y_B = batch(channels=channels, image_size=side, num_classes=sizes["num_classes"])
    with torch.no_grad():
        ours, theirs = model(x_BCHW, t_B, y_B), reference(x_BCHW, timestep=t_B, class_labels=y_B).sample
    assert ours.shape == (3, 2 * channels if learn_sigma else channels, side, side)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_adaln_equals_adaln_zero_with_gates_of_one() -> None:
    block, gated = AdaLNBlock(32, 16, 4.0).double(), AdaLNZeroBlock(32, 16, 4.0).double()
    randomize(block)
    state = block.state_dict()
    for kind, gate in (("weight", 0.0), ("bias", 1.0)):
        name = f"adaLN_modulation.1.{kind}"
        shift_attn, scale_attn, shift_mlp, scale_mlp = state[name].chunk(4)
        gate_D = torch.full_like(shift_attn, gate)
        state[name] = torch.cat([shift_attn, scale_attn, gate_D, shift_mlp, scale_mlp, gate_D])
    gated.load_state_dict(state)
    generator = torch.Generator().manual_seed(2)
    x_BTD, c_BD = (torch.randn(shape, generator=generator).double() for shape in ((3, 16, 32), (3, 32)))
    with torch.no_grad():
        torch.testing.assert_close(block(x_BTD, c_BD), gated(x_BTD, c_BD), rtol=1e-12, atol=1e-12)
