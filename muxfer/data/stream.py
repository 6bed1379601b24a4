"""Batches, timesteps and noise as a function of seed, replicate and step; and the next batch ahead of time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from muxfer.data.dataset import Split
from muxfer.randomness import generator_of


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's material: u is the quantile of the time (float64), y has dropped labels replaced by num_classes.

    `index` says which pictures of the split these are.
    """

    x_BCHW: torch.Tensor
    y_B: torch.Tensor
    u_B: torch.Tensor
    noise_BCHW: torch.Tensor
    index_B: torch.Tensor


class Stream:
    """Batches by step: epoch after epoch in an order of its own, a batch may span two of them."""

    def __init__(
        self, split: Split, *, num_classes: int, batch_size: int, label_dropout: float, seed: int, replicate: int
    ) -> None:
        self._split = split
        self._null_label = num_classes
        self._batch_size = batch_size
        self._label_dropout = label_dropout
        self._source = (seed, replicate)
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int) -> Batch:
        index_B = self._index(step)
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

    def _index(self, step: int) -> torch.Tensor:
        num_pictures = len(self._split)
        start, stop = step * self._batch_size, (step + 1) * self._batch_size
        parts = []
        for epoch in range(start // num_pictures, (stop - 1) // num_pictures + 1):
            first = epoch * num_pictures
            parts.append(self._order(epoch)[max(start - first, 0) : stop - first])
        return torch.cat(parts)

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            while len(self._orders) >= 2:
                self._orders.pop(next(iter(self._orders)))
            generator = generator_of(*self._source, "epoch", epoch)
            self._orders[epoch] = torch.randperm(len(self._split), generator=generator)
        return self._orders[epoch]


class Ahead:
    """Prepares the next step's batch in a thread, so that a GPU does not wait for the CPU's random numbers."""

    def __init__(self, prepare: Callable[[int], Batch]) -> None:
        self._prepare = prepare
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._next: tuple[int, Future[Batch]] | None = None

    def take(self, step: int) -> Batch:
        ready = self._next
        batch = (
            ready[1].result()
            if ready is not None and ready[0] == step
            else self._pool.submit(self._prepare, step).result()
        )
        self._next = (step + 1, self._pool.submit(self._prepare, step + 1))
        return batch
