"""Make image features for REPA with fixed random convolutions, in place of a pretrained encoder.

They are computed once, before training, on the CPU. There is one vector a patch, like a pretrained encoder's tokens.

Axes: N pictures, C channels, H and W pixels, T patches, E features.
"""

import torch
from torch.nn import functional as F

from muxfer.data.randomness import generator_of

HIDDEN = 64
BATCH = 1024


@torch.no_grad()
def frozen_features(x_NCHW: torch.Tensor, *, patch: int, dim: int) -> torch.Tensor:
    """Features [N, T, E] of pictures in [-1, 1]: a 3x3 convolution, ReLU, and a convolution over each patch.

    The mean over all patches is subtracted. It is most of what a ReLU lets through: on the digits (patch 2, 32
    features) one constant vector came within 0.33 of every patch in 1 - cosine, and without the mean within 0.93
    (2026-11). The weights follow from the sizes alone. Patches come row by row, as in a patch embedding.
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
