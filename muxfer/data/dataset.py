"""Pictures in memory, and the stream of batches that training draws from them.

Every batch, with its times, noise and dropped labels, is a function of (study seed, replicate, step), computed on a CPU
generator: all settings of a study see the same, and a resume needs no generator state. Refuses a folder that can't
be read completely: a picture that is silently left out would make another study.

Axes: N pictures, B batch, C channels, H and W pixels.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Split:
    """Pictures as whole numbers 0..levels (uint8) and their labels."""

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor
    levels: int

    def __len__(self) -> int:
        return len(self.labels_N)

    def images(self, index: torch.Tensor | slice) -> torch.Tensor:
        """These pictures as float32 in [-1, 1]."""
        return self.pixels_NCHW[index].float().mul_(2 / self.levels).sub_(1)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """`fingerprint` is a hash of the content, the same under every path and on every host."""

    train: Split
    validation: Split
    class_names: tuple[str, ...]
    captions: tuple[str, ...]
    """One a class, for models that read text."""
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.pixels_NCHW.shape[1:]
        return channels, height, width
