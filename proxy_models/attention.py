"""The only attention call of the project, so that a faster kernel or another backend has one place to go.

Scores keep 1/sqrt(head_dim): the head dim is fixed and the number of heads grows with the width, so no width enters.
Refuses nothing itself; the models check that their width holds whole heads.

Axes: B batch, H heads, T tokens, S tokens attended to, K head dim, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F


def attend(q_BHTK: torch.Tensor, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor) -> torch.Tensor:
    """Softmax attention of every query over all S keys; returns [B, H, T, K]."""
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK)


class SelfAttention(nn.Module):
    """Multi-head self-attention: one linear for queries, keys and values, one for the output."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        qkv_BT3HK = self.qkv(x_BTD).unflatten(-1, (3, -1, self.head_dim))
        q_BHTK, k_BHTK, v_BHTK = qkv_BT3HK.permute(2, 0, 3, 1, 4).unbind(0)
        out_BTHK = attend(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2)
        return self.proj(out_BTHK.flatten(-2))
