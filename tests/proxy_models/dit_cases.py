"""A small DiT, a batch for it, and every block design."""

from typing import Any

import pytest
import torch

from proxy_models.dit import BLOCKS
from tests.proxy_models import every_family

SMALL = every_family.sizes_of("dit")
every_block = pytest.mark.parametrize("block", list(BLOCKS))


def batch(size: int = 3, **changes: Any) -> tuple[torch.Tensor, ...]:
    """Image, timesteps and labels."""
    return tuple(every_family.batch("dit", size, **changes).values())
