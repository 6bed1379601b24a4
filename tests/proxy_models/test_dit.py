"""DiT is the paper's: its sizes, its outputs as diffusers computes them, its identity at initialization."""

import diffusers
import pytest
import torch

from proxy_models import FAMILIES
from proxy_models.attention import attend
from proxy_models.dit import DiT
from proxy_models.embed import PatchEmbed, sincos_positions

SMALL = {
    "width": 32,
    "depth": 2,
    "head_dim": 16,
    "patch": 2,
    "image_size": 8,
    "channels": 3,
    "num_classes": 5,
}


def randomize(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Fill every parameter with noise: a zero gate hides whatever is wrong behind it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def batch(size: int = 3, *, channels: int = 3, image_size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(size, channels, image_size, image_size, generator=generator)
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0])[:size], torch.tensor([0, 3, 5])[:size]


@pytest.mark.parametrize(
    ("width", "depth", "head_dim", "millions"), [(384, 12, 64, 33), (768, 12, 64, 130), (1152, 28, 72, 675)]
)
def test_sizes_have_the_papers_parameter_counts(width: int, depth: int, head_dim: int, millions: int) -> None:
    with torch.device("meta"):
        model = FAMILIES["dit"].build(
            width=width,
            depth=depth,
            head_dim=head_dim,
            patch=2,
            image_size=32,
            channels=4,
            num_classes=1000,
            learn_sigma=True,
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6) == millions


def test_the_registered_readout_is_a_parameter() -> None:
    family = FAMILIES["dit"]
    assert family.readout in dict(family.build(**SMALL).named_parameters())


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


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_outputs_equal_those_of_diffusers(learn_sigma: bool) -> None:
    model = DiT(**SMALL, learn_sigma=learn_sigma, frequency_shift=1.0)
    randomize(model)
    reference = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=3,
        out_channels=6 if learn_sigma else 3,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_eps=1e-6,
    ).eval()
    to_diffusers(model, reference)
    x_BCHW, t_B, y_B = batch()
    with torch.no_grad():
        ours, theirs = model(x_BCHW, t_B, y_B), reference(x_BCHW, timestep=t_B, class_labels=y_B).sample
    assert ours.shape == (3, 6 if learn_sigma else 3, 8, 8)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_zero_gates_and_zero_readout_at_initialization() -> None:
    model = DiT(**SMALL)
    x_BCHW, t_B, y_B = batch()
    assert torch.equal(model(x_BCHW, t_B, y_B), torch.zeros(3, 3, 8, 8))
    tokens_BTD = model.x_embedder(x_BCHW)
    assert torch.equal(model.blocks[0](tokens_BTD, torch.randn(3, 32)), tokens_BTD)


def test_time_label_and_position_each_reach_the_output() -> None:
    model = DiT(**SMALL)
    randomize(model)
    x_BCHW, t_B, y_B = batch()
    out = model(x_BCHW, t_B, y_B)
    assert not torch.allclose(out, model(x_BCHW, t_B + 1, y_B))
    assert not torch.allclose(out, model(x_BCHW, t_B, (y_B + 1) % 6))
    assert not torch.allclose(out, model(x_BCHW.roll(2, dims=-1), t_B, y_B).roll(-2, dims=-1))


def test_forward_draws_no_random_numbers() -> None:
    model = DiT(**SMALL).train()
    state = torch.get_rng_state()
    model(*batch())
    assert torch.equal(state, torch.get_rng_state())


def test_input_weights_do_not_know_the_width() -> None:
    torch.manual_seed(0)
    for width in (64, 1024):
        embed = PatchEmbed(2, 4, width)
        embed.reset_parameters()
        assert embed.proj.weight.std().item() == pytest.approx(0.25, rel=0.15)


def test_positions_are_a_buffer_outside_the_state_dict() -> None:
    model = DiT(**SMALL)
    assert "pos_embed" in dict(model.named_buffers())
    assert "pos_embed" not in model.state_dict()
    assert model.pos_embed.shape == (16, 32)


def test_attention_is_softmax_over_the_square_root_of_the_head_dim() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 4, dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "width 40 is not divisible by head_dim 16"),
        ({"patch": 3}, "image_size 8 is not divisible by patch 3"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(**{**SMALL, **change})


def test_positions_need_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(6, 2)


def test_an_unknown_key_fails() -> None:
    with pytest.raises(TypeError, match="heads"):
        DiT(**SMALL, heads=2)
