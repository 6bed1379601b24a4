"""Features of a frozen image encoder, for REPA, where none are configured: random convolutions, the same everywhere.

Computed once, before training, on the CPU: one vector a patch, as a pretrained encoder's patch tokens would come.

Axes: N pictures, C channels, H and W pixels, T patches, E features.
"""

import torch
from torch.nn import functional as F

from muxfer.randomness import generator_of

HIDDEN = 64
BATCH = 1024


@torch.no_grad()
def frozen_features(x_NCHW: torch.Tensor, *, patch: int, dim: int) -> torch.Tensor:
    """[N, T, E] of pictures in [-1, 1]: a 3x3 convolution, ReLU, and one over each patch, less the mean of them all.

    The weights follow from the sizes alone. The mean goes because it is most of what a ReLU lets through: on the
    digits (patch 2, 32 features) one constant vector came within 0.33 of every patch in 1 - cosine, and without the
    mean within 0.93 (2026-11). Patches are in rows, as a patch embedding has them.
    """
    channels = x_NCHW.shape[1]
    generator = generator_of("features", channels, patch, dim)
    first = torch.randn(HIDDEN, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    second = torch.randn(dim, HIDDEN, patch, patch, generator=generator) / (HIDDEN * patch * patch) ** 0.5
    parts = [
        F.conv2d(F.relu(F.conv2d(part, first, padding=1)), second, stride=patch).flatten(2).transpose(1, 2)
        for part in x_NCHW.split(BATCH)
    ]
    features_NTE = torch.cat(parts)
    return features_NTE.sub_(features_NTE.mean((0, 1)))
