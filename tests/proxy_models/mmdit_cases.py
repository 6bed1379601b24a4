"""A small MMDiT, its configuration, and a batch for it."""

from typing import Any

import torch

from muxfer.config.hydra_compose import compose
from muxfer.config.models import Mmdit
from muxfer.config.parse import parse_part
from proxy_models.mmdit import MMDiT
from tests.proxy_models.random_weights import randomize

SMALL: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "head_dim": 16,
    "patch": 2,
    "image_size": 8,
    "channels": 3,
    "text_dim": 6,
    "pooled_dim": 5,
}
REPA: dict[str, Any] = {"repa_depth": 1, "repa_dim": 7}


def config(**changes: Any) -> Mmdit:
    return Mmdit(**{"family": "mmdit", "base_width": 32, **SMALL, **changes})


def composed(*overrides: str) -> Mmdit:
    return parse_part("model", compose("lr-width", ["model=mmdit", *overrides]))


def randomized(**changes: Any) -> Any:
    model = MMDiT(**{**SMALL, **changes})
    randomize(model)
    return model


def batch(size: int = 3, *, length: int = 4, **changes: Any) -> tuple[torch.Tensor, ...]:
    """Image, timesteps, caption and pooled caption."""
    sizes = {**SMALL, **changes}
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(size, sizes["channels"], sizes["image_size"], sizes["image_size"], generator=generator)
    text_BLE = torch.randn(size, length, sizes["text_dim"], generator=generator)
    pooled_BP = torch.randn(size, sizes["pooled_dim"], generator=generator)
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0])[:size], text_BLE, pooled_BP
