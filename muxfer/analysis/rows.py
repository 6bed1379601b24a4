"""A table of cells with a curve through each of its rows: the optima, the regrets and the drift that follow.

A row is one axis value. `FittedRow` reads its optimum from the parabola near its lowest cell. `FittedTable` fits the
rows, pools their noise and compares them with the row of the largest axis value. What the numbers amount to is judged
in `muxfer.analysis.transferability`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muxfer.analysis.cells import Cell, Table, best_cell, bracket, relative_excess
from muxfer.analysis.curves import Curve, Noise, RowPoints, drift_interval, fit_curves
from muxfer.trial import Optimum, Outcome, Regret

NEAR = 0.03
"""Smoothing decides between settings whose measured metrics lie within this share: a parabola is no more exact."""

GAP = 1.5
"""A row's grid has a gap where two of its values are this many times its usual step apart."""

NO_DRIFT: Mapping[str, float | None] = {"value": None, "low": None, "high": None}
"""Where no drift can be measured."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """A fitted curve and its 95 % band: `positions` in the setting's own units, the rest in the metric's.

    `low` and `high` equal `mean` where the noise is unknown.
    """

    positions: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class FittedTable:
    """The rows of a table with their curves, their pooled noise, and the comparisons between them.

    `paired` False: replicates of different cells share no randomness.
    """

    def __init__(self, table: Table, *, log2_hp: bool, paired: bool = True) -> None:
        points = {axis: _row_points(cells, log2_hp=log2_hp) for axis, cells in table.items()}
        curves, self.noise = fit_curves({a: p for a, p in points.items() if len(p.positions)}, paired=paired)
        self.log2_hp = log2_hp
        self.rows = {
            axis: FittedRow(cells=cells, points=points[axis], curve=curves.get(axis), noise=self.noise, log2_hp=log2_hp)
            for axis, cells in table.items()
        }

    @property
    def largest(self) -> "FittedRow":
        return self.rows[max(self.rows)]

    def regrets(self) -> tuple[Regret, ...]:
        """The regret of each smaller axis value. One whose optimum never ran at the largest is left out."""
        regrets = []
        for axis, row in self.rows.items():
            here = None if row.grid is None else self.largest.cells.get(row.grid.hp)
            best = self.largest.grid
            if row is self.largest or here is None or best is None or best.mean is None or row.choice is None:
                continue
            if here.mean is None and here.outcome is not Outcome.DIVERGED:
                continue
            relative = None if here.mean is None else relative_excess(here.mean, best.mean)
            estimate, low, high = self._smoothed_regret(row.choice)
            regrets.append(
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
        return tuple(regrets)

    def _smoothed_regret(self, choice: Cell) -> tuple[float | None, float | None, float | None]:
        """Estimate and 95 % interval of what the largest task loses by this choice.

        The upper end is the largest over all finished settings there, because the best of them is uncertain too.
        """
        row = self.largest
        here = row.cells.get(choice.hp)
        if here is None or here.mean is None or row.choice is None:
            return None, None, None
        estimate, variance = row.contrast(here, row.choice)
        if self.noise is None:
            return max(estimate, 0.0), None, None
        spread = self.noise.quantile * math.sqrt(self.noise.variance)
        high = max(d + spread * math.sqrt(v) for d, v in (row.contrast(here, other) for other in row.finished))
        return max(estimate, 0.0), max(estimate - spread * math.sqrt(variance), 0.0), max(high, 0.0)

    def drift(self) -> Mapping[str, float | None]:
        """Least-squares slope of the optimum over log2 of the axis.

        It has a 95 % interval where at least two rows have a vertex with an interval.
        """
        curves = {
            math.log2(axis): row.curve for axis, row in self.rows.items() if axis > 0 and row.interval and row.curve
        }
        if len(curves) >= 2 and self.noise is not None and (drift := drift_interval(curves, self.noise)) is not None:
            return dict(zip(("value", "low", "high"), drift, strict=True))
        optima = {}
        for axis, row in self.rows.items():
            optimum = row.optimum()
            place = optimum.grid if optimum.fitted is None else optimum.fitted
            if axis > 0 and place is not None:
                optima[axis] = place
        if len(optima) < 2 or (self.log2_hp and min(optima.values()) <= 0):
            return NO_DRIFT
        x = np.log2(list(optima))
        x = x - x.mean()
        y = [math.log2(place) if self.log2_hp else place for place in optima.values()]
        return {"value": float(np.asarray(x / (x @ x)) @ y), "low": None, "high": None}

    def marches(self) -> bool:
        """Whether the grid optimum moves one way by two grid steps or more: a drift where no curve has an interval."""
        grid = sorted({hp for row in self.rows.values() for hp in row.cells})
        places = [grid.index(row.grid.hp) for row in self.rows.values() if row.grid is not None]
        steps = np.diff(places)
        return bool(abs(steps.sum()) >= 2 and ((steps >= 0).all() or (steps <= 0).all()))


@dataclass(frozen=True, kw_only=True)
class FittedRow:
    """One axis value: its cells, the curve through them if there is one, and the noise of all rows."""

    cells: Mapping[float, Cell]
    points: RowPoints
    curve: Curve | None
    noise: Noise | None
    log2_hp: bool

    @cached_property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.mean is not None]

    @cached_property
    def num_settled(self) -> int:
        return sum(cell.outcome.settled for cell in self.cells.values())

    @cached_property
    def grid(self) -> Cell | None:
        """The cell with the lowest mean."""
        return best_cell(self.cells)

    @cached_property
    def choice(self) -> Cell | None:
        """The cell that is lowest on the curve, among the finished cells near the lowest.

        A curve without a certain minimum smooths nothing: then it is the grid's optimum.
        """
        if self.interval is None or self.grid is None or self.grid.mean is None:
            return self.grid
        ceiling = self.grid.mean + NEAR * self.points.level
        near = [cell for cell in self.finished if cell.mean is not None and cell.mean <= ceiling]
        return min(near, key=lambda cell: (self._smoothed(cell), cell.hp))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The vertex's 95 % interval. None where the points do not curve, or the minimum does not lie between them."""
        if self.curve is None or self.noise is None or self.grid is None or not self.curve.coefficients[1] > 0:
            return None
        below, above = bracket(self.cells, self.grid)
        ends = [self._position(cell) for cell in (below or self.grid, above or self.grid)]
        used = self.points.positions[self.curve.used]
        if not min(ends[0], used[0]) < self.curve.vertex() < max(ends[1], used[-1]):
            return None
        return self.curve.vertex_interval(self.noise)

    def optimum(self) -> Optimum:
        if self.grid is None or self.choice is None:
            return Optimum(grid=None, **self._stability())
        fitted = low = high = None
        if self.interval is not None and self.curve is not None:
            fitted = self._setting_at(self.curve.vertex())
            low, high = (self._setting_at(end) if self._is_tried(end) else None for end in self.interval)
        elif self.noise is None and self.curve is not None and self.curve.coefficients[1] > 0:
            below, above = bracket(self.cells, self.grid)
            inside = below and above and self._position(below) < self.curve.vertex() < self._position(above)
            fitted = self._setting_at(self.curve.vertex()) if inside else None
        choice = self.choice.hp
        return Optimum(grid=self.grid.hp, choice=choice, fitted=fitted, low=low, high=high, **self._stability())

    def is_inside(self, cell: Cell) -> bool:
        """Whether the cell has a settled neighbour on both sides, diverged or not."""
        return None not in bracket(self.cells, cell)

    def hole(self, values: Iterable[float]) -> float | None:
        """The first of these values that lies beside the optimum in a gap of the row's grid; None: there is none."""
        if self.choice is None:
            return None
        settled = sorted(self._position(cell) for cell in self.cells.values() if cell.outcome.settled)
        here = settled.index(self._position(self.choice))
        typical = float(np.median(np.diff(settled)))
        for low, high in itertools.pairwise(settled[max(here - 1, 0) : here + 2]):
            if high - low > GAP * typical:
                return next((hp for hp in values if low < _position_of(hp, log2_hp=self.log2_hp) < high), None)
        return None

    def contrast(self, cell: Cell, other: Cell) -> tuple[float, float]:
        """The relative difference of the smoothed metrics at two cells, and its variance in units of the noise's."""
        if self.curve is not None and self._shapes_curve(cell) and self._shapes_curve(other):
            return self.curve.contrast(self._position(cell), self._position(other))
        return self._smoothed(cell) - self._smoothed(other), self._variance(cell) + self._variance(other)

    def band(self) -> Band | None:
        """The curve between the outermost points that shape it; None where there is none."""
        if self.curve is None:
            return None
        used = self.points.positions[self.curve.used]
        x = np.linspace(used[0], used[-1], 41)
        mean, level = self.curve.at(x), self.points.level
        spread = np.zeros_like(mean)
        if self.noise is not None:
            spread = self.noise.quantile * np.sqrt(self.noise.variance * self.curve.variance_at(x))
        return Band(
            positions=tuple(self._setting_at(place) for place in x),
            mean=tuple((level * mean).tolist()),
            low=tuple((level * (mean - spread)).tolist()),
            high=tuple((level * (mean + spread)).tolist()),
        )

    def _position(self, cell: Cell) -> float:
        return _position_of(cell.hp, log2_hp=self.log2_hp)

    def _is_tried(self, position: float) -> bool:
        """Whether the position lies between settled cells. An interval that reaches beyond is open on that side."""
        tried = [self._position(cell) for cell in self.cells.values() if cell.outcome.settled]
        return min(tried) <= position <= max(tried)

    def _setting_at(self, position: float) -> float:
        return float(2.0**position if self.log2_hp else position)

    def _smoothed(self, cell: Cell) -> float:
        """The curve's relative metric where the cell shapes the curve, else the cell's own."""
        assert cell.mean is not None
        if self.curve is not None and self._shapes_curve(cell):
            return float(self.curve.at(np.array([self._position(cell)]))[0])
        return cell.mean / self.points.level

    def _variance(self, cell: Cell) -> float:
        if self.curve is not None and self._shapes_curve(cell):
            return float(self.curve.variance_at(np.array([self._position(cell)]))[0])
        return 1 / len(cell.metrics)

    def _shapes_curve(self, cell: Cell) -> bool:
        return self._position(cell) in self._used_positions

    @cached_property
    def _used_positions(self) -> frozenset[float]:
        return frozenset() if self.curve is None else frozenset(self.points.positions[self.curve.used].tolist())

    def _stability(self) -> dict[str, float | None]:
        """The first divergence above the optimum, and the largest setting below it that finished.

        A setting that finished beyond a divergence was lucky, or never learnt.
        """
        best = -math.inf if self.grid is None else self.grid.hp
        diverged = (hp for hp, cell in self.cells.items() if hp > best and cell.outcome is Outcome.DIVERGED)
        diverges = min(diverged, default=None)
        stable = (cell.hp for cell in self.finished if diverges is None or cell.hp < diverges)
        return {"stable": max(stable, default=None), "diverges": diverges}


def _position_of(hp: float, *, log2_hp: bool) -> float:
    """Where a setting lies on the curve: its log2, -inf where it has none, or the setting itself."""
    if not log2_hp:
        return hp
    return math.log2(hp) if hp > 0 else -math.inf


def _row_points(cells: Mapping[float, Cell], *, log2_hp: bool) -> RowPoints:
    places = {hp: _position_of(hp, log2_hp=log2_hp) for hp in cells}
    finished = [cell for hp, cell in cells.items() if cell.mean is not None and math.isfinite(places[hp])]
    replicates = sorted({replicate for cell in finished for replicate in cell.metrics})
    column = {replicate: i for i, replicate in enumerate(replicates)}
    metrics = np.full((len(finished), len(replicates)), np.nan)
    for i, cell in enumerate(finished):
        metrics[i, [column[replicate] for replicate in cell.metrics]] = list(cell.metrics.values())
    best = best_cell(cells)
    return RowPoints(
        positions=np.array([places[cell.hp] for cell in finished]),
        metrics=metrics,
        diverged=tuple(places[hp] for hp, cell in cells.items() if cell.outcome is Outcome.DIVERGED),
        level=abs(best.mean) if best is not None and best.mean else 1.0,
    )
