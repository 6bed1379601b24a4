"""The only attention call of the project: a faster kernel or another backend has one place to go.

Scores keep 1/sqrt(head_dim). The head dim is fixed and the number of heads grows, so scores do not depend on the width.
Refuses nothing itself: the models refuse a width that is not whole heads.

Axes: B batch, H heads, T tokens, S tokens attended to, K head dim, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F


def attend(
    q_BHTK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor, mask_BS: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention of every query over the S keys, or over those where the mask is True. Returns [B, H, T, K].

    Each sample needs at least one True key: a softmax over none is NaN.
    """
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=None if mask_BS is None else mask_BS[:, None, None]
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention: one linear for queries, keys and values, one for the output."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        qkv_BT3HK = self.qkv(x_BTD).unflatten(-1, (3, -1, self.head_dim))
        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4).unbind(0)
        out_BTHK = attend(q_BHTK, k_BHTK, v_BHTK, mask_BT).transpose(1, 2)
        return self.proj(out_BTHK.flatten(-2))


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence over another: queries from x, keys and values from the context."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_BTD: torch.Tensor, context_BSD: torch.Tensor, mask_BS: torch.Tensor | None = None
    ) -> torch.Tensor:
        q_BHTK = self.q_linear(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        kv_BS2HK = self.kv_linear(context_BSD).unflatten(-1, (2, -1, self.head_dim))
        k_BHSK, v_BHSK = kv_BS2HK.permute(2, 0, 3, 1, 4).unbind(0)
        out_BTHK = attend(q_BHTK, k_BHSK, v_BHSK, mask_BS).transpose(1, 2)
        return self.proj(out_BTHK.flatten(-2))
