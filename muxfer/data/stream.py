"""Make batches of training and validation, and prepare the next one in a thread.

Each training batch, with its times, noise and dropped labels, is a function of (study seed, replicate, step). A CPU
generator draws it. So all settings of a study see the same batches, and a resume needs no generator state. Validation
uses a fixed grid of times and noise.

Axes: B batch, C channels, H and W pixels.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from muxfer.data.dataset import Split
from muxfer.data.randomness import generator_of

VALIDATION_BATCH = 256
"""Validation noise is drawn by batch, so another number gives another metric and needs another NUMERICS_VERSION."""
VALIDATION_MAX_PICTURES = 2048
"""A larger validation split is cut to this many pictures. They are ordered by content hash, so the cut is random."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The material of one step. `u` is the quantile of the time (float64). In `y` a dropped label is num_classes.
    `index` holds the pictures' places in the split.
    """

    x_BCHW: torch.Tensor
    y_B: torch.Tensor
    u_B: torch.Tensor
    noise_BCHW: torch.Tensor
    index_B: torch.Tensor


class Stream:
    """Training batches by step. Each epoch has an order of its own, and a batch may span epochs."""

    def __init__(
        self, split: Split, *, num_classes: int, batch_size: int, label_dropout: float, seed: int, replicate: int
    ) -> None:
        self._split, self._null_label = split, num_classes
        self._batch_size, self._label_dropout = batch_size, label_dropout
        self._source = (seed, replicate)
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int) -> Batch:
        index_B = self.index(step)
        generator = generator_of(*self._source, "step", step)
        u_B = torch.rand(len(index_B), generator=generator, dtype=torch.float64)
        drop_B = torch.rand(len(index_B), generator=generator) < self._label_dropout
        x_BCHW = self._split.images(index_B)
        return Batch(
            x_BCHW=x_BCHW,
            y_B=self._split.labels_N[index_B].masked_fill_(drop_B, self._null_label),
            u_B=u_B,
            noise_BCHW=torch.randn(x_BCHW.shape, generator=generator),
            index_B=index_B,
        )

    def index(self, step: int) -> torch.Tensor:
        """The places in the split of a step's pictures [B]."""
        num_pictures = len(self._split)
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        epochs = range(start // num_pictures, (stop - 1) // num_pictures + 1)
        firsts = [epoch * num_pictures for epoch in epochs]
        return torch.cat([self._order(e)[max(start - f, 0) : stop - f] for e, f in zip(epochs, firsts, strict=True)])

    def _order(self, epoch: int) -> torch.Tensor:
        """The order of an epoch's pictures. The last two are kept."""
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                self._orders.pop(next(iter(self._orders)))
            generator = generator_of(*self._source, "epoch", epoch)
            self._orders[epoch] = torch.randperm(len(self._split), generator=generator)
        return self._orders[epoch]


def validation_batches(split: Split, *, num_timesteps: int) -> Iterator[Batch]:
    """The fixed grid of validation: every picture at each of the times (i + 0.5) / num_timesteps, with fixed noise."""
    num_pictures = num_validation_pictures(split)
    for i in range(num_timesteps):
        u = (i + 0.5) / num_timesteps
        for start in range(0, num_pictures, VALIDATION_BATCH):
            x_BCHW = split.images(slice(start, min(start + VALIDATION_BATCH, num_pictures)))
            yield Batch(
                x_BCHW=x_BCHW,
                y_B=split.labels_N[start : start + len(x_BCHW)],
                u_B=torch.full((len(x_BCHW),), u, dtype=torch.float64),
                noise_BCHW=torch.randn(x_BCHW.shape, generator=generator_of("validation", i, start)),
                index_B=torch.arange(start, start + len(x_BCHW)),
            )


def num_validation_pictures(split: Split) -> int:
    return min(len(split), VALIDATION_MAX_PICTURES)


class BatchPrefetcher:
    """Prepares the next step's batch in a thread, so that a GPU does not wait for the CPU's random numbers."""

    def __init__(self, prepare: Callable[[int], Batch]) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step, prepared in advance when it follows the last one."""
        if self._next is not None and self._next[0] == step:
            batch = self._next[1].result()
        else:
            batch = self._pool.submit(self._prepare, step).result()
        self._next = (step + 1, self._pool.submit(self._prepare, step + 1))
        return batch
