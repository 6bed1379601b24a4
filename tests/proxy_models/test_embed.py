"""Embedders and attention, the parts that several families share."""

import pytest
import torch

from proxy_models.attention import CrossAttention, attend
from proxy_models.embed import PatchEmbed, sincos_positions
from tests.proxy_models.every_family import randomize


def test_initial_patch_embedding_does_not_depend_on_the_width() -> None:
    torch.manual_seed(0)
    for width in (64, 1024):
        embed = PatchEmbed(2, 4, width)
        embed.reset_parameters()
        assert embed.proj.weight.std().item() == pytest.approx(0.25, rel=0.15)


def test_attention_is_softmax_over_the_square_root_of_the_head_dim() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = torch.softmax(q @ k.transpose(-1, -2) / 4, dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)


def test_masked_tokens_have_no_influence() -> None:
    attention = CrossAttention(32, 16)
    randomize(attention)
    generator = torch.Generator().manual_seed(2)
    x_BTD, context_BSD = (torch.randn(2, tokens, 32, generator=generator) for tokens in (5, 4))
    mask_BS = torch.tensor([[True, True, False, False], [False, True, False, True]])
    with torch.no_grad():
        out = attention(x_BTD, context_BSD, mask_BS)
        for i in range(2):
            torch.testing.assert_close(out[[i]], attention(x_BTD[[i]], context_BSD[[i]][:, mask_BS[i]]))
        assert not torch.allclose(out, attention(x_BTD, context_BSD))
        everything = torch.ones_like(mask_BS)
        torch.testing.assert_close(attention(x_BTD, context_BSD, everything), attention(x_BTD, context_BSD))


def test_positions_need_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(6, 2)
