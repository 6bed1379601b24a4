"""What holds for the models of every family: sizes, the readout, the branches, no draws, and torch's own layers."""

from fnmatch import fnmatch
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proxy_models import FAMILIES, in_context, uvit
from proxy_models.dit import BLOCKS, CrossAttentionBlock, InContextBlock
from tests.proxy_models.every_family import batch, build, randomize

REPA = {"repa_depth": 1, "repa_dim": 7}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {f"dit {block}": ("dit", {"block": block}) for block in BLOCKS}
VARIANTS |= {family: (family, {}) for family in FAMILIES if family != "dit"} | {"mmdit with REPA": ("mmdit", REPA)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_registered_readout_is_a_parameter(family: str) -> None:
    assert FAMILIES[family].readout in dict(build(family).named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_draws_no_random_numbers(variant: str) -> None:
    family, changes = VARIANTS[variant]
    model = build(family, **changes).train()
    state = torch.get_rng_state()
    model(**batch(family), **({"repa": True} if changes is REPA else {}))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "uvit"])
def test_the_output_is_zero_at_initialization(variant: str) -> None:
    family, changes = VARIANTS[variant]
    assert torch.equal(build(family, **changes)(**batch(family)), torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "width 40 is not divisible by head_dim 16"),
        ({"patch": 3}, "image_size 8 is not divisible by patch 3"),
    ],
)
def test_impossible_sizes_are_refused(family: str, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(family, **change)


STREAMS = ("joint_blocks.0.x_block", "joint_blocks.0.context_block", "joint_blocks.1.x_block")
SKIPS = ("in_blocks.0", "mid_block", "out_blocks.0")
LAST_LINEARS = {
    "dit": [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.proj", "mlp.fc2")],
    "pixart": [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.proj", "cross_attn.proj", "mlp.fc2")],
    "uvit": ["out_blocks.0.skip_linear", *(f"{block}.{part}" for block in SKIPS for part in ("attn.proj", "mlp.fc2"))],
    "in_context": [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.proj", "mlp.fc2")],
    "cross_attention": [f"blocks.{i}.{part}" for i in (0, 1) for part in ("attn.proj", "cross_attn.proj", "mlp.fc2")],
    "mmdit": [f"{stream}.{part}" for stream in STREAMS for part in ("attn.proj", "mlp.fc2")],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_the_blocks_and_their_ends_the_last_linears(family: str) -> None:
    changes = {"mmdit": REPA, "uvit": {"skip": "residual"}}.get(family, {})
    names = [name for name, _ in build(family, **changes).named_parameters()]
    inside, ends = (
        {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
        for patterns in (FAMILIES[family].branches, FAMILIES[family].branch_ends)
    )
    assert ends == {f"{linear}.{kind}" for linear in LAST_LINEARS[family] for kind in ("weight", "bias")}
    assert inside == {name for name in names if "block" in name.partition(".")[0] and not name.startswith("t_block")}


def to_torch(block: nn.Module, *, approximate: str = "tanh", eps: float = 1e-6) -> nn.Module:
    """torch's own pre-norm layer with the weights of a block: a decoder's where it attends to a context."""
    crosses = isinstance(block, CrossAttentionBlock)
    layer = (nn.TransformerDecoderLayer if crosses else nn.TransformerEncoderLayer)(
        d_model=32,
        nhead=2,
        dim_feedforward=128,
        dropout=0.0,
        activation=partial(F.gelu, approximate=approximate),
        layer_norm_eps=eps,
        batch_first=True,
        norm_first=True,
    )
    names = {"norm1": "norm1", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    if crosses:
        names |= {"norm2": "norm_cross", "norm3": "norm2", "multihead_attn.out_proj": "cross_attn.proj"}
    else:
        names |= {"norm2": "norm2"}
    own = {"attn.qkv.bias": torch.zeros(96), **block.state_dict()}
    state = {f"{theirs}.{kind}": own[f"{ours}.{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = own[f"attn.qkv.{kind}"]
        if crosses:
            parts = [own[f"cross_attn.{part}.{kind}"] for part in ("q_linear", "kv_linear")]
            state[f"multihead_attn.in_proj_{kind}"] = torch.cat(parts)
    layer.load_state_dict(state)
    return layer.double().eval()


def test_dits_cross_attention_block_equals_torchs_decoder_layer() -> None:
    block = CrossAttentionBlock(32, 16, 4.0).double()
    randomize(block)
    generator = torch.Generator().manual_seed(2)
    x_BTD, c_BSD = (torch.randn(3, tokens, 32, generator=generator).double() for tokens in (16, 2))
    with torch.no_grad():
        torch.testing.assert_close(block(x_BTD, c_BSD), to_torch(block)(x_BTD, c_BSD), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(InContextBlock, {}), (in_context.Block, {}), (uvit.Block, {"approximate": "none", "eps": 1e-5})],
    ids=["dit", "in_context", "uvit"],
)
def test_a_block_equals_torchs_encoder_layer(kind: Any, options: dict[str, Any]) -> None:
    block = kind(32, 16, 4.0).double()
    randomize(block)
    layer = to_torch(block, **options)
    x_BTD = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(3)).double()
    mask_BT = torch.arange(7) < torch.tensor([[7], [4]])
    torch.testing.assert_close(block(x_BTD), layer(x_BTD), rtol=1e-12, atol=1e-12)
    if kind is not InContextBlock:  # DiT has no padding
        ours, theirs = block(x_BTD, mask_BT=mask_BT), layer(x_BTD, src_key_padding_mask=~mask_BT)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
