"""Records as rows of a fit, and the fit's covariates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muxfer.analysis.cells import Cell, Table, best_cell, bracket
from muxfer.analysis.curves import Curve, Noise, RowPoints, drift_interval, fit_curves
from muxfer.trial import Optimum, Outcome, Regret

NEAR = 0.03
"""Smoothing decides between settings whose measured metrics lie within this share: a parabola is no more than that."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """A fitted curve and its 95 % band: `positions` in the setting's own units, the rest in the metric's.

    `low` and `high` equal `mean` where nothing tells the noise.
    """

    positions: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class FittedRow:
    """One axis value: its cells, the curve through them if there is one, and the choice that follows.

    Curve and noise are set by the study, before anything is read.
    """

    def __init__(self, cells: Mapping[float, Cell], *, log2_hp: bool) -> None:
        self.log2_hp = log2_hp
        self.cells = cells
        self.finished = [cell for cell in self.cells.values() if cell.mean is not None]
        self.grid = best_cell(self.cells)
        self.curve: Curve | None = None
        self.noise: Noise | None = None
        self.points = _points(self)

    def position(self, cell: Cell) -> float:
        """Where the cell lies on the curve; nowhere (-inf) where the setting has no log2."""
        if not self.log2_hp:
            return cell.hp
        return math.log2(cell.hp) if cell.hp > 0 else -math.inf

    def setting_at(self, position: float) -> float:
        return float(2.0**position if self.log2_hp else position)

    def smoothed(self, cell: Cell) -> float:
        """The curve's relative metric where the cell shapes the curve, else its own."""
        assert cell.mean is not None
        if self.curve is not None and self._shapes(cell):
            return float(self.curve.at(np.array([self.position(cell)]))[0])
        return cell.mean / self.points.level

    @cached_property
    def choice(self) -> Cell | None:
        """Of the finished cells near the lowest, the one that is lowest once smoothed.

        A curve that has no sure minimum smooths nothing.
        """
        if self.interval is None or self.grid is None or self.grid.mean is None:
            return self.grid
        ceiling = self.grid.mean + NEAR * self.points.level
        near = [cell for cell in self.finished if cell.mean is not None and cell.mean <= ceiling]
        return min(near, key=lambda cell: (self.smoothed(cell), cell.hp))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Of the vertex; None where the points do not curve, or where the curve's minimum is not between them."""
        if self.curve is None or self.noise is None or self.grid is None or not self.curve.coefficients[1] > 0:
            return None
        below, above = bracket(self.cells, self.grid)
        ends = [self.position(cell) for cell in (below or self.grid, above or self.grid)]
        used = self.points.positions[self.curve.used]
        if not min(ends[0], used[0]) < self.curve.vertex() < max(ends[1], used[-1]):
            return None
        return self.curve.vertex_interval(self.noise)

    def contrast(self, cell: Cell, other: Cell) -> tuple[float, float]:
        """By how much the smoothed metric at one cell exceeds that at another, relatively; and its variance."""
        if self.curve is not None and self._shapes(cell) and self._shapes(other):
            return self.curve.contrast(self.position(cell), self.position(other))
        return self.smoothed(cell) - self.smoothed(other), self._variance(cell) + self._variance(other)

    def optimum(self) -> Optimum:
        if self.grid is None or self.choice is None:
            return Optimum(grid=None, **self._stability())
        fitted = low = high = None
        if self.interval is not None and self.curve is not None:
            fitted, low, high = (self.setting_at(x) for x in (self.curve.vertex(), *self.interval))
        elif self.noise is None and self.curve is not None and self.curve.coefficients[1] > 0:
            below, above = bracket(self.cells, self.grid)
            inside = below and above and self.position(below) < self.curve.vertex() < self.position(above)
            fitted = self.setting_at(self.curve.vertex()) if inside else None
        choice = self.choice.hp
        return Optimum(grid=self.grid.hp, choice=choice, fitted=fitted, low=low, high=high, **self._stability())

    def closed(self, cell: Cell) -> bool:
        return None not in bracket(self.cells, cell)

    def _shapes(self, cell: Cell) -> bool:
        return self.position(cell) in self._shaping

    @cached_property
    def _shaping(self) -> frozenset[float]:
        return frozenset() if self.curve is None else frozenset(self.points.positions[self.curve.used].tolist())

    def _variance(self, cell: Cell) -> float:
        if self.curve is not None and self._shapes(cell):
            return float(self.curve.variance_at(np.array([self.position(cell)]))[0])
        return 1 / len(cell.metrics)

    def _stability(self) -> dict[str, float | None]:
        """Up to the first divergence above the optimum: what finished beyond it was lucky, or never learnt."""
        best = -math.inf if self.grid is None else self.grid.hp
        diverged = (hp for hp, cell in self.cells.items() if hp > best and cell.outcome is Outcome.DIVERGED)
        diverges = min(diverged, default=None)
        stable = (cell.hp for cell in self.finished if diverges is None or cell.hp < diverges)
        return {"stable": max(stable, default=None), "diverges": diverges}


class FittedTable:
    """All rows, their pooled noise, and what they say of each other."""

    def __init__(self, table: Table, *, log2_hp: bool, paired: bool) -> None:
        self.rows = {axis: FittedRow(cells, log2_hp=log2_hp) for axis, cells in table.items()}
        self.log2_hp = log2_hp
        fitted = {axis: row.points for axis, row in self.rows.items() if len(row.points.positions)}
        curves, self.noise = fit_curves(fitted, paired=paired)
        for axis, row in self.rows.items():
            row.curve, row.noise = curves.get(axis), self.noise

    @property
    def largest(self) -> FittedRow:
        return self.rows[max(self.rows)]

    def regrets(self) -> tuple[Regret, ...]:
        """A smaller axis value whose optimum never ran at the largest has no regret: it is left out, not guessed."""
        found = []
        for axis, row in self.rows.items():
            here = None if row.grid is None else self.largest.cells.get(row.grid.hp)
            if row is self.largest or here is None or self.largest.grid is None or row.choice is None:
                continue
            if here.mean is None and here.outcome is not Outcome.DIVERGED:
                continue
            relative = None if here.mean is None else _relative(here.mean, self.largest.grid.mean)
            estimate, low, high = self._smoothed_regret(row.choice)
            found.append(
                Regret(
                    from_=axis,
                    to=max(self.rows),
                    setting=here.hp,
                    relative=relative,
                    choice=row.choice.hp,
                    estimate=estimate,
                    low=low,
                    high=high,
                )
            )
        return tuple(found)

    def _smoothed_regret(self, choice: Cell) -> tuple[float | None, float | None, float | None]:
        """Estimate and 95 % interval of what the largest task loses by this choice.

        The upper end is the largest over all that may be better there: which one is best is not known either.
        """
        row = self.largest
        here = row.cells.get(choice.hp)
        if here is None or here.mean is None or row.choice is None:
            return None, None, None
        estimate, variance = row.contrast(here, row.choice)
        if self.noise is None:
            return max(estimate, 0.0), None, None
        t = self.noise.quantile
        spread = t * math.sqrt(self.noise.variance)
        high = max(d + spread * math.sqrt(v) for d, v in (row.contrast(here, other) for other in row.finished))
        return max(estimate, 0.0), max(estimate - spread * math.sqrt(variance), 0.0), max(high, 0.0)

    def marches(self) -> bool:
        """Whether the grid optimum moves one way by two grid steps or more: a drift, where no curve has an interval."""
        grid = sorted({hp for row in self.rows.values() for hp in row.cells})
        places = [grid.index(row.grid.hp) for row in self.rows.values() if row.grid is not None]
        steps = np.diff(places)
        return bool(abs(steps.sum()) >= 2 and ((steps >= 0).all() or (steps <= 0).all()))

    def drift(self) -> dict[str, float | None]:
        """Least-squares slope of the optimum over log2 of the axis, with its 95 % interval where vertices tell it."""
        told = {
            math.log2(axis): row.curve for axis, row in self.rows.items() if axis > 0 and row.interval and row.curve
        }
        if len(told) >= 2 and self.noise is not None and (found := drift_interval(told, self.noise)) is not None:
            return dict(zip(("value", "low", "high"), found, strict=True))
        places = {}
        for axis, row in self.rows.items():
            optimum = row.optimum()
            place = optimum.grid if optimum.fitted is None else optimum.fitted
            if axis > 0 and place is not None:
                places[axis] = place
        if len(places) < 2 or (self.log2_hp and min(places.values()) <= 0):
            return {"value": None, "low": None, "high": None}
        at = [math.log2(place) if self.log2_hp else place for place in places.values()]
        return {"value": float(_slope_weights(places) @ at), "low": None, "high": None}


def _relative(metric: float, best: float | None) -> float | None:
    """By how much a metric exceeds the best one; of a best of exactly 0 only that it is the same can be told."""
    if not best:
        return 0.0 if metric == best else None
    return (metric - best) / abs(best)


def _slope_weights(values: Mapping[float, object]) -> np.ndarray:
    x = np.log2(list(values))
    x = x - x.mean()
    return np.asarray(x / (x @ x))


def _points(row: FittedRow) -> RowPoints:
    finished = [cell for cell in row.finished if math.isfinite(row.position(cell))]
    replicates = sorted({replicate for cell in finished for replicate in cell.metrics})
    column = {replicate: i for i, replicate in enumerate(replicates)}
    metrics = np.full((len(finished), len(replicates)), np.nan)
    for i, cell in enumerate(finished):
        metrics[i, [column[replicate] for replicate in cell.metrics]] = list(cell.metrics.values())
    diverged = tuple(row.position(cell) for cell in row.cells.values() if cell.outcome is Outcome.DIVERGED)
    positions = np.array([row.position(cell) for cell in finished])
    level = abs(row.grid.mean) if row.grid is not None and row.grid.mean else 1.0
    return RowPoints(positions=positions, metrics=metrics, diverged=diverged, level=level)
