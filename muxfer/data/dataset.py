"""The pictures of a study in memory, in a training and a validation split. Axes: N pictures, C channels, H and W
pixels.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Split:
    """Pictures as whole numbers 0..levels (uint8), and their labels."""

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor
    levels: int

    def __len__(self) -> int:
        return len(self.labels_N)

    def images(self, index: torch.Tensor | slice) -> torch.Tensor:
        """The pictures at `index` as float32 in [-1, 1]."""
        return self.pixels_NCHW[index].float().mul_(2 / self.levels).sub_(1)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Two splits and their classes. `fingerprint` is a hash of the content, the same under every path and host."""

    train: Split
    validation: Split
    class_names: tuple[str, ...]
    captions: tuple[str, ...]  # one caption a class, for models that read text
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.pixels_NCHW.shape[1:]
        return channels, height, width
