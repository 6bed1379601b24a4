"""The points of one axis value that shape its curve, and what their replicates say about noise.

The metric is compared on a relative scale, log(metric / lowest mean): noise is relative, a seed that is worse by a
share is worse by an offset, and a wall beside the optimum bends the scale less. A metric that reaches 0 or below has no
log: there the scale is log(1 + relative excess) above the lowest mean, the relative difference below it.

Replicates that share their batches are blocks: what a replicate adds to all its points alike is taken out, exactly as
one offset a replicate in least squares. What remains of a row is the mean of each cell and the covariance of the means
(`Reduced`), so a curve is fitted to cells and not to trials.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

BASIN = 0.5
"""Cells shape the curve while they are at most this share above the lowest one. Beyond is a wall of another nature."""
MIN_CELLS = 3
"""The fewest cells beside each other that shape a curve."""
LARGEST_EXCESS = 1e12
"""Relative excess above which metrics are equally bad."""
MAX_CELLS = 160
"""The number of cells of all rows together that shape the curves; each row keeps those nearest to its lowest."""


@dataclass(frozen=True, kw_only=True)
class RowPoints:
    """The finished cells of one axis value, ascending: positions [n], metrics [n, S], NaN where a replicate has none.

    Cells that diverged have no metrics: their positions are `diverged`. `best` is the lowest mean, `level` its absolute
    value, or 1.
    """

    positions: np.ndarray
    metrics: np.ndarray
    diverged: tuple[float, ...]
    best: float
    level: float

    @property
    def means(self) -> np.ndarray:
        """[n], over the replicates that have one."""
        return np.nanmean(self.metrics, axis=1)

    def scaled(self, metric: np.ndarray) -> np.ndarray:
        """Metrics on the curve's scale: 0 at the lowest mean."""
        if self._is_positive:
            return np.asarray(np.log(metric) - np.log(self.best))
        excess = np.minimum(metric / self.level - self.best / self.level, LARGEST_EXCESS)
        return np.where(excess > 0, np.log1p(np.maximum(excess, 0.0)), excess)

    def unscaled(self, y: np.ndarray) -> np.ndarray:
        """The metric of values on the curve's scale."""
        if self._is_positive:
            return np.asarray(self.best * np.exp(y))
        return self.best + self.level * np.where(y > 0, np.expm1(np.maximum(y, 0.0)), y)

    @cached_property
    def _is_positive(self) -> bool:
        return self.best > 0 and bool(np.nanmin(self.metrics) > 0)

    def near_minimum(self, max_cells: int) -> np.ndarray:
        """Indices of the cells that shape the curve: those around the lowest one, up to a wall or a diverged cell.

        Where they are fewer than MIN_CELLS, the nearest cells of the wall are among them.
        """
        means = self.means
        best = int(np.argmin(means))
        ceiling = self.best + BASIN * self.level
        inside = self._around(best, means <= ceiling)
        if len(inside) < MIN_CELLS:
            inside = self._around(best, np.ones(len(means), dtype=bool))
            max_cells = MIN_CELLS
        nearest = sorted(inside, key=lambda i: (abs(i - best), means[i]))[:max_cells]
        return np.array(sorted(nearest))

    def _around(self, best: int, allowed: np.ndarray) -> list[int]:
        """The cells that are joined to the lowest one by allowed cells, with no diverged one between."""
        joined = [best]
        for step in (-1, 1):
            i = best + step
            while 0 <= i < len(allowed) and allowed[i] and not self._is_parted(i - step, i):
                joined.append(i)
                i += step
        return joined

    def _is_parted(self, i: int, j: int) -> bool:
        low, high = sorted((self.positions[i], self.positions[j]))
        return any(low < place < high for place in self.diverged)


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """The cells' means [n], free up to one constant, and their covariance [n, n] in units of one trial's variance.

    `sse` and `df` are the scatter of replicates about the means. `log_density` is what the weights add to the log
    likelihood, apart from the curve.
    """

    mean: np.ndarray
    covariance: np.ndarray
    sse: float
    df: int
    log_density: float


def reduce(y: np.ndarray, weights: np.ndarray, *, paired: bool) -> Reduced:
    """Cells of metrics y [n, S] whose trials have the precisions `weights` [n]. See the module's text for `paired`."""
    known = np.isfinite(y)
    if paired and len(y) == 1:  # the offsets of its replicates take all that it says
        covariance = np.full((1, 1), 1 / known.sum())
        return Reduced(mean=np.nanmean(y, axis=1), covariance=covariance, sse=0.0, df=0, log_density=0.0)
    filled = np.where(known, y, 0.0)
    if paired and (blocks := _blocks(filled, known, weights)) is not None:
        return blocks
    counts = known.sum(axis=1)
    mean = filled.sum(axis=1) / counts
    total = weights * counts
    return Reduced(
        mean=mean,
        covariance=np.diag(1 / total),
        sse=float((weights[:, None] * np.where(known, y - mean[:, None], 0.0) ** 2).sum()),
        df=int((counts - 1).sum()),
        log_density=float(0.5 * (counts @ np.log(weights) - np.log(total).sum())),
    )


def _blocks(y: np.ndarray, known: np.ndarray, weights: np.ndarray) -> Reduced | None:
    """With an offset a replicate; None where replicates do not connect all cells, so offsets would hide differences."""
    w = weights[:, None] * known
    w = w[:, w.any(axis=0)]
    y = y[:, known.any(axis=0)]
    sums = w.sum(axis=0)
    precision = np.diag(w.sum(axis=1)) - (w / sums) @ w.T
    values = np.linalg.eigvalsh(precision)
    n = len(weights)
    if values[1] <= 1e-9 * values[-1]:
        return None
    centered = y - (w * y).sum(axis=0) / sums
    covariance = np.linalg.inv(precision + np.full((n, n), precision.trace() / n**2))
    mean = covariance @ (w * centered).sum(axis=1)
    log_weights = np.log(weights)[:, None] * (w > 0)
    return Reduced(
        mean=mean,
        covariance=covariance,
        sse=max(float((w * centered**2).sum() - mean @ precision @ mean), 0.0),
        df=int((w > 0).sum()) - w.shape[1] - (n - 1),
        log_density=float(0.5 * (log_weights.sum() - np.log(sums).sum() - np.log(values[1:]).sum())),
    )
