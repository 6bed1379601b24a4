"""Networks with residual branches for the tests of depth scaling: one of our own making, and DiT.

Depth is three times the base depth and width three times the base width, so no factor is a power of two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from muxfer.mup import ScalePlan, make_plan
from proxy_models import FAMILIES

BASE, OTHER, WIDTH, BASE_DEPTH, DEPTH = 16, 32, 48, 2, 6
M, S, ALPHA = WIDTH / BASE, BASE_DEPTH / DEPTH, 3.0
HEAD_DIM = 8


class Block(nn.Module):
    """Attention with one key head and QK-norm, then an MLP; gates from a linear and a table, none of them zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(HEAD_DIM)
        self.kv = nn.Linear(width, 2 * HEAD_DIM)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / 2)

    def forward(self, x_BTD: torch.Tensor, c_BD: torch.Tensor) -> torch.Tensor:
        gate_attn, gate_mlp = (self.gate(c_BD).unflatten(1, (2, -1)) + self.scale_shift_table).unbind(1)
        h_BTD = self.norm(x_BTD)
        q_BHTK = self.q_norm(self.q(h_BTD).unflatten(-1, (-1, HEAD_DIM))).transpose(1, 2)
        k_B1TK, v_B1TK = self.kv(h_BTD)[:, None].chunk(2, dim=-1)
        attended_BTHK = F.scaled_dot_product_attention(
            q_BHTK, k_B1TK.expand_as(q_BHTK), v_B1TK.expand_as(q_BHTK)
        ).transpose(1, 2)
        x_BTD = x_BTD + gate_attn[:, None] * self.proj(attended_BTHK.flatten(-2))
        return x_BTD + gate_mlp[:, None] * self.fc2(F.gelu(self.fc1(F.layer_norm(x_BTD, x_BTD.shape[-1:]))))


class Residual(nn.Module):
    """Every role that a branch may hold: hidden, vectors and a table, finite gains, a readout (keys and values)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.condition = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x_BTC: torch.Tensor, c_BC: torch.Tensor) -> torch.Tensor:
        x_BTD, c_BD = self.embed(x_BTC), F.silu(self.condition(c_BC))
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        return self.out(F.layer_norm(x_BTD, x_BTD.shape[-1:]))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and what it declares. `inputs` draws one batch and its target."""

    build: Callable[[int, int], nn.Module]
    inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]]
    readout: str
    branch_ends: tuple[str, ...]
    gates: str

    def plan(
        self, *, width: int = WIDTH, depth: int = DEPTH, parametrization: str = "completep", **kwargs
    ) -> ScalePlan:
        return make_plan(
            lambda w: self.build(w, depth),
            width=width,
            base_width=BASE,
            other_width=OTHER,
            parametrization=parametrization,
            readout=self.readout,
            depth=depth,
            branches=("blocks.*",),
            branch_ends=self.branch_ends,
            **{"output_multiplier": ALPHA, "base_depth": BASE_DEPTH, **kwargs},
        )


@cache
def right_plan(case: str) -> ScalePlan:
    return CASES[case].plan()


def residual(width: int, depth: int) -> nn.Module:
    return Residual(width, depth).double()


def draw_tokens(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 5, 3), (8, 3), (8, 5, 3))
    )


def dit(width: int, depth: int) -> nn.Module:
    """Our DiT with its zero gates, but with a random readout, so that the first step has a gradient."""
    model = FAMILIES["dit"].build(
        width=width, depth=depth, head_dim=16, patch=4, image_size=8, channels=1, num_classes=10
    )
    nn.init.normal_(model.final_layer.linear.weight, std=width**-0.5)
    return model.double()


def draw_images(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    x_BCHW, target_BCHW = torch.randn(2, 8, 1, 8, 8, generator=generator, dtype=torch.float64)
    t_B = 1000 * torch.rand(8, generator=generator, dtype=torch.float64)
    return x_BCHW, t_B, torch.randint(0, 11, (8,), generator=generator), target_BCHW


CASES = {
    "residual": Case(
        build=residual,
        inputs=draw_tokens,
        readout="out.weight",
        branch_ends=("blocks.*.proj.*", "blocks.*.fc2.*"),
        gates="blocks.*.gate.*",
    ),
    "dit": Case(
        build=dit,
        inputs=draw_images,
        readout="final_layer.linear.weight",
        branch_ends=FAMILIES["dit"].branch_ends,
        gates="blocks.*.adaLN_modulation.*",
    ),
}


def is_end(name: str) -> bool:
    return name.startswith("blocks.") and name.rpartition(".")[0].endswith((".proj", ".fc2"))
