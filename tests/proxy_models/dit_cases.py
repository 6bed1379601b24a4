"""A small DiT, a batch for it, and every block design."""

from typing import Any

import pytest
import torch

from proxy_models.dit import BLOCKS

SMALL: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "head_dim": 16,
    "patch": 2,
    "image_size": 8,
    "channels": 3,
    "num_classes": 5,
}
every_block = pytest.mark.parametrize("block", list(BLOCKS))


def batch(
    size: int = 3, *, channels: int = 3, image_size: int = 8, num_classes: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(size, channels, image_size, image_size, generator=generator)
    y_B = torch.tensor([0, (num_classes + 1) // 2, num_classes])
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0])[:size], y_B[:size]
