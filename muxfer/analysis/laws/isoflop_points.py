"""The points of an isoFLOP study: one trained model a row, validated and grouped into budgets.

A budget's curve is shaped by the sizes in the basin about its lowest loss (`basin`). A table with a number that no
trained model can have is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from muxfer.analysis.laws.isoflop_curve import Polynomial
from muxfer.analysis.laws.power_law import Array, Interval
from muxfer.errors import BadInput

MAX_POINTS = 10_000
SAME_BUDGET = 0.05
"""Rows whose FLOPs are at most this share apart belong to one budget: steps are whole numbers."""
BASIN = 0.25
"""Sizes shape the curve while their loss is at most this share above the budget's lowest, or are the nearest five."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """One trained model a row: FLOPs, parameters, tokens (or samples), loss, and FID where there is one. [n] each.

    A loss that is NaN diverged.
    """

    flops: Array
    params: Array
    tokens: Array
    loss: Array
    fid: Array | None = None

    def __getitem__(self, rows: Any) -> "Points":
        fid = None if self.fid is None else self.fid[rows]
        return Points(
            flops=self.flops[rows], params=self.params[rows], tokens=self.tokens[rows], loss=self.loss[rows], fid=fid
        )

    def __len__(self) -> int:
        return len(self.flops)

    def lowest(self) -> tuple[int, Array]:
        """The place of the size with the lowest loss among the sizes, and the sizes, ascending."""
        sizes, place = np.unique(self.params, return_inverse=True)
        losses = np.full(len(sizes), np.inf)
        np.minimum.at(losses, place, self.loss)
        return int(np.argmin(losses)), sizes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One budget's points and, where they have one, its optimum. `why` says why it is left out; empty: it is not."""

    flops: float
    points: Points
    used: Array
    """[P], which of them shape the curve."""
    params: Interval | None = None
    tokens: float | None = None
    loss: float | None = None
    fid: float | None = None
    curve: Polynomial | None = None
    """The fitted curve of the loss."""
    why: str = ""

    def column(self, name: str) -> tuple[Array, Array, float]:
        """Sizes and values of the rows that shape the curve and have a value, and the center of all the curves."""
        params, values = self.points.params[self.used], getattr(self.points, name)[self.used]
        present = np.isfinite(values) & (values > 0)
        return params[present], values[present], float(np.log(params).mean())


def usable(points: Points) -> tuple[Points, list[str]]:
    """Rows with a finite loss, each once, and notes on the others. BadInput where a number is impossible."""
    notes = []
    if len(points) > MAX_POINTS:
        raise BadInput(
            f"the table has {len(points):,} rows: expected one row a trained model, {MAX_POINTS:,} at most; give the"
            " final losses only"
        )
    for name in ("flops", "params", "tokens"):
        column = getattr(points, name)
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise BadInput(f"column {name}, row {bad[0] + 1} holds {column[bad[0]]:g}: expected numbers above 0")
    if len(bad := np.flatnonzero(points.loss <= 0)):
        raise BadInput(f"column loss, row {bad[0] + 1} holds {points.loss[bad[0]]:g}: a power law needs losses above 0")
    finite = np.isfinite(points.loss)
    if not finite.all():
        notes.append(f"{np.sum(~finite)} of {len(points)} rows have no finite loss and shape nothing")
    points = points[finite]
    table = np.stack([points.flops, points.params, points.tokens, points.loss])
    first = np.unique(table, axis=1, return_index=True)[1]
    if len(first) < len(points):
        notes.append(f"{len(points) - len(first)} rows stand twice and count once")
    return points[np.sort(first)], notes


def by_budget(points: Points) -> list[Points]:
    """The points of each budget, ascending, the sizes ascending within."""
    if not len(points):
        return []
    order = np.lexsort((points.params, points.flops))
    cuts = np.flatnonzero(np.diff(np.log(points.flops[order])) > SAME_BUDGET) + 1
    return [points[rows[np.argsort(points.params[rows], kind="stable")]] for rows in np.split(order, cuts)]


def basin(points: Points) -> Budget:
    """One budget's points, and which of them shape its curve."""
    best, sizes = points.lowest()
    start = min(max(best - 2, 0), max(len(sizes) - 5, 0))
    nearest = sizes[start : start + 5]
    used = (points.loss <= (1 + BASIN) * points.loss.min()) | np.isin(points.params, nearest)
    return Budget(flops=float(np.median(points.flops)), points=points, used=used)
