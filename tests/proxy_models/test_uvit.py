"""U-ViT's blocks as torch computes them, its long skips, and what reaches its output."""

import pytest
import torch

from proxy_models.uvit import Block, UViT
from tests.proxy_models.every_family import batch, randomize, sizes_of

LABELS = sizes_of("uvit", depth=5)
TEXT = {**sizes_of("in_context", depth=5), "text_length": 9}


def built(**arguments) -> UViT:
    model = UViT(**arguments)
    randomize(model)
    return model


def test_parameter_names_are_the_references() -> None:
    names = {name.removesuffix(".weight").removesuffix(".bias") for name, _ in UViT(**LABELS).named_parameters()}
    block = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
    blocks = {f"{place}.{part}" for place in ("in_blocks.0", "in_blocks.1", "mid_block") for part in block}
    blocks |= {f"out_blocks.{i}.{part}" for i in (0, 1) for part in {*block, "skip_linear"}}
    assert names == blocks | {"patch_embed.proj", "label_emb", "pos_embed", "norm", "decoder_pred", "final_layer"}
    assert "context_embed.weight" in UViT(**TEXT).state_dict()
    assert "mid_block.attn.qkv.bias" not in UViT(**LABELS).state_dict()


@pytest.mark.parametrize("skip", ["linear", "residual"])
def test_a_skip_is_joined_before_the_block(skip: str) -> None:
    block = Block(32, 16, 4.0, skip=skip)
    randomize(block)
    x_BTD, skip_BTD = torch.randn(2, 2, 7, 32, generator=torch.Generator().manual_seed(3)).unbind(0)
    weight, bias = block.skip_linear.weight, block.skip_linear.bias
    joined_BTD = x_BTD @ weight[:, :32].T + skip_BTD @ weight[:, 32:].T + bias
    plain = Block(32, 16, 4.0)
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if "skip" not in name})
    expected = plain(x_BTD + joined_BTD if skip == "residual" else joined_BTD)
    torch.testing.assert_close(block(x_BTD, skip_BTD), expected, rtol=1e-5, atol=1e-5)


def test_skips_join_the_last_in_block_to_the_first_out_block() -> None:
    """Out-block j cut off from the trunk sees in-blocks 0 to n-1-j, through its own skip and the later ones, only."""
    n = 3
    x_BCHW, t_B, y_B = batch("uvit").values()

    def output(*, cut: int, change: int | None) -> torch.Tensor:
        model = built(**{**LABELS, "depth": 2 * n + 1})
        with torch.no_grad():
            model.out_blocks[cut].skip_linear.weight[:, :32] = 0
            if change is not None:
                [*model.in_blocks, model.mid_block][change].mlp.fc2.bias += 0.1
            return model(x_BCHW, t_B, y_B)

    for cut in range(n):
        reached = [not torch.equal(output(cut=cut, change=None), output(cut=cut, change=i)) for i in range(n + 1)]
        assert reached == [i <= n - 1 - cut for i in range(n + 1)], f"out-block {cut}"


@pytest.mark.parametrize("skip", ["linear", "residual"])
@pytest.mark.parametrize("depth", [1, 3])
def test_every_odd_depth_gives_an_image(skip: str, depth: int) -> None:
    model = built(**{**LABELS, "skip": skip, "depth": depth, "learn_sigma": True})
    out = model(**batch("uvit"))
    assert out.shape == (3, 6, 8, 8)
    assert out.std() > 0.1
    assert len(model.in_blocks) == len(model.out_blocks) == depth // 2


def test_time_and_label_reach_the_output() -> None:
    model = built(**LABELS)
    x_BCHW, t_B, y_B = batch("uvit").values()
    out = model(x_BCHW, t_B, y_B)
    for changed in (model(x_BCHW, t_B + 100, y_B), model(x_BCHW, t_B, (y_B + 1) % 6)):
        assert (changed - out).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_the_order_of_tokens_enters_by_positions_only() -> None:
    """Without positions, and with a convolution that passes each pixel, permuted patches give permuted patches."""
    model = built(**TEXT)
    x_BCHW, t_B, text_BLE, _ = batch("in_context").values()
    rolled = x_BCHW.roll(2, dims=-1)
    with torch.no_grad():
        torch.nn.init.dirac_(model.final_layer.weight)
        out = model(x_BCHW, t_B, text_BLE=text_BLE)
        assert not torch.allclose(out, model(rolled, t_B, text_BLE=text_BLE).roll(-2, dims=-1), atol=1e-2)
        assert not torch.allclose(out, model(x_BCHW, t_B, text_BLE=text_BLE.flip(1)), atol=1e-3)
        model.pos_embed.zero_()
        out = model(x_BCHW, t_B, text_BLE=text_BLE)
        moved, flipped = model(rolled, t_B, text_BLE=text_BLE), model(x_BCHW, t_B, text_BLE=text_BLE.flip(1))
    torch.testing.assert_close(out, moved.roll(-2, dims=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, flipped, rtol=1e-4, atol=1e-5)


def test_output_starts_constant_and_one_readout_step_gives_all_weights_gradients() -> None:
    torch.manual_seed(0)
    model = UViT(**LABELS)
    x_BCHW, t_B, y_B = batch("uvit").values()
    out = model(x_BCHW, t_B, y_B)
    assert torch.equal(out, model.final_layer.bias[None, :, None, None].expand_as(out))
    (out - x_BCHW).square().mean().backward()
    assert model.decoder_pred.weight.grad.norm() > 1e-4
    with torch.no_grad():
        model.decoder_pred.weight -= 0.1 * model.decoder_pred.weight.grad
    (model(x_BCHW, t_B, y_B) - x_BCHW).square().mean().backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 4}, "depth 4 is even: .* use 5"),
        ({"skip": "none"}, "skip 'none': expected linear or residual"),
        ({"num_classes": None}, "takes labels or text, give one"),
        ({"text_dim": 6}, "takes labels or text, give one"),
    ],
)
def test_impossible_models_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UViT(**{**LABELS, **change})


def test_a_caption_longer_than_the_positions_is_refused() -> None:
    model = UViT(**TEXT)
    given = batch("in_context", length=10)
    with pytest.raises(ValueError, match="a caption of 10 tokens: positions are learned for 9"):
        model(**given)
