"""Small U-ViTs, batches for them, and their configuration."""

import torch

from muxfer.config.models import Uvit
from proxy_models.uvit import UViT
from tests.proxy_models.random_weights import randomize

SMALL = {"width": 32, "depth": 5, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 3}
LABELS = {**SMALL, "num_classes": 5}
TEXT = {**SMALL, "text_dim": 6, "text_length": 9}


def built(**arguments) -> UViT:
    model = UViT(**arguments)
    randomize(model)
    return model


def batch(size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    x_BCHW = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0])[:size]


def captions(size: int = 3, *, length: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Text [B, L, 6] and its mask: all tokens of the first caption, one less of each caption after it."""
    text_BLE = torch.randn(size, length, 6, generator=torch.Generator().manual_seed(2))
    return text_BLE, torch.arange(length) < (length - torch.arange(size))[:, None]


def config(**change) -> Uvit:
    sizes = {"width": 64, "depth": 5, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 1}
    return Uvit(**{"family": "uvit", "base_width": 64, "num_classes": 10, **sizes, **change})
