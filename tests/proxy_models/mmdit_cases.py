"""A small MMDiT, its configuration, and a batch for it."""

from typing import Any

import torch

from muxfer.config.hydra_compose import compose
from muxfer.config.models import Mmdit
from muxfer.config.parse import parse_part
from tests.proxy_models import every_family

SMALL = every_family.sizes_of("mmdit")
REPA: dict[str, Any] = {"repa_depth": 1, "repa_dim": 7}


def config(**changes: Any) -> Mmdit:
    return Mmdit(**{"family": "mmdit", "base_width": 32, **SMALL, **changes})


def composed(*overrides: str) -> Mmdit:
    return parse_part("model", compose("lr-width", ["model=mmdit", *overrides]))


def randomized(**changes: Any) -> Any:
    return every_family.randomized("mmdit", **changes)


def batch(size: int = 3, *, length: int = 4, **changes: Any) -> tuple[torch.Tensor, ...]:
    """Image, timesteps, caption and pooled caption."""
    return tuple(every_family.batch("mmdit", size, length=length, **changes).values())
