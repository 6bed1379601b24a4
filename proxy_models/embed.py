"""Embeds pixels, time, labels and positions for a transformer.

Every first layer here is an input weight: its fan-in is finite, so its initial deviation must not depend on the width.
The DiT reference draws the patch embedding by Xavier, whose fan-out depends on the width. Here it is fan_in^-1/2.
No forward draws random numbers: the caller has already replaced some labels by the null class.

Axes: B batch, C channels, H and W pixels, T patches, D width, F frequencies.
"""

import math

import torch
from torch import nn

TABLE_STD = 0.02
"""Deviation of tables and timestep layers in the DiT reference."""


class PatchEmbed(nn.Module):
    """One token per patch of the image: a convolution whose stride is its kernel."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.proj.weight, std=self.proj.weight[0].numel() ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


def patches_to_image(x_BTD: torch.Tensor, patch: int) -> torch.Tensor:
    """From [B, T, patch*patch*C] of a square image to [B, C, H, W]. C runs fastest, as in the DiT reference."""
    side = math.isqrt(x_BTD.shape[1])
    x_BhwpqC = x_BTD.unflatten(-1, (patch, patch, -1)).unflatten(1, (side, side))
    return x_BhwpqC.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sincos_positions(width: int, side: int) -> torch.Tensor:
    """Fixed 2-d positions [side*side, D]. Half the width encodes the column, half the row, each sines then cosines."""
    if width % 4:
        raise ValueError(f"width {width}: 2-d sine-cosine positions need a multiple of 4")
    # On the CPU: arithmetic on the meta device imports torch._dynamo, 2 s of CPU time.
    frequency_F = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width / 4))
    angle_SF = torch.outer(torch.arange(side, dtype=torch.float64, device="cpu"), frequency_F)
    line_SD = torch.cat([angle_SF.sin(), angle_SF.cos()], dim=1)
    column_TD = line_SD.repeat(side, 1)
    row_TD = line_SD.repeat_interleave(side, dim=0)
    return torch.cat([column_TD, row_TD], dim=1).float().to(torch.get_default_device())


def timestep_features(t_B: torch.Tensor, size: int, *, frequency_shift: float = 0.0) -> torch.Tensor:
    """Cosines then sines of t, in float32: [B, size]. t runs from 0 to 1000, whatever the objective.

    Frequencies are 10000^(-i / (size/2 - frequency_shift)). The DiT reference has shift 0, diffusers' DiT has 1.
    """
    half = size // 2
    index_F = torch.arange(half, dtype=torch.float32, device=t_B.device)
    # Keep this order of operations: at t = 999 a float32 rounding of a frequency moves the outputs by 1e-4.
    frequency_F = torch.exp(-math.log(10000.0) * index_F / (half - frequency_shift))
    angle_BF = t_B.float()[:, None] * frequency_F[None]
    return torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1)


class TimestepEmbed(nn.Module):
    """256 sinusoids of the timestep through a two-layer MLP."""

    def __init__(self, width: int, *, num_features: int = 256, frequency_shift: float = 0.0) -> None:
        super().__init__()
        self.num_features = num_features
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=TABLE_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, t_B: torch.Tensor) -> torch.Tensor:
        features_BF = timestep_features(t_B, self.num_features, frequency_shift=self.frequency_shift)
        return self.mlp(features_BF.to(next(self.mlp.parameters()).dtype))


class LabelEmbed(nn.Module):
    """One row per class, and a last row for the null class, which label dropout and guidance use."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding_table.weight, std=TABLE_STD)

    def forward(self, y_B: torch.Tensor) -> torch.Tensor:
        return self.embedding_table(y_B)
