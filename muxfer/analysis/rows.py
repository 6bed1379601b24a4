"""A table of cells with the curves of its rows: the optima, the regrets and the drift that follow.

A row is one axis value. `FittedTable` fits the curves of all rows at once (`muxfer.analysis.curves`) and compares the
rows with that of the largest axis value. `FittedRow` reads one row. What the numbers amount to is judged in
`muxfer.analysis.transferability`.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muxfer.analysis.cells import Cell, Table, best_cell, bracket, relative_excess
from muxfer.analysis.curves import Curves, Interval, Noise
from muxfer.analysis.optimum import locate
from muxfer.analysis.points import MIN_CELLS, RowPoints, reduce
from muxfer.analysis.quantiles import TAIL, Mixture
from muxfer.trial import Optimum, Outcome, Regret

GAP = 1.5
"""A row's grid has a gap where two of its values are this many times its usual step apart."""

MIN_DF = 4
"""With fewer degrees of freedom the noise is known too badly to smooth by: then the lowest cell is the choice."""

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
    """The rows of a table with their curves, and the comparisons between them.

    `paired` False: replicates of different cells share no randomness.
    """

    def __init__(self, table: Table, *, log2_hp: bool, paired: bool = True) -> None:
        points = {axis: _row_points(cells, log2_hp=log2_hp) for axis, cells in table.items()}
        curves = _fit({axis: one for axis, one in points.items() if len(one.positions)}, paired=paired)
        self.log2_hp = log2_hp
        self.curves = curves
        self.noise = _noise(points, paired=paired) if curves is None else curves.noise
        self.rows = {
            axis: FittedRow(
                axis=axis,
                cells=cells,
                points=points[axis],
                curves=curves if curves is not None and axis in curves.used else None,
                noise=self.noise,
                log2_hp=log2_hp,
            )
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
            estimate, low, high = self.largest.regret(row.choice.hp)
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

    @cached_property
    def drift(self) -> Mapping[str, float | None]:
        """How far the curves shift per doubling of the axis, with its 95 % interval.

        At least two curves must have a minimum: otherwise a steeper curve looks like a shifted one. If they have none,
        or do not bound the drift, it is the least-squares slope of the optima and has no interval.
        """
        num_minima = sum(row.minimum is not None for row in self.rows.values())
        if self.curves is not None and num_minima >= 2 and (drift := self.curves.drift()) is not None:
            return {"value": drift.value, "low": drift.low, "high": drift.high}
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
    """One axis value: its cells, and the curves and the noise of all rows.

    `curves` is None where its own cells shape none.
    """

    axis: float
    cells: Mapping[float, Cell]
    points: RowPoints
    curves: Curves | None
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
        """The cell that is lowest on the curve. Of equal ones the smaller setting wins."""
        if self.curves is None or self.noise is None or self.noise.df < MIN_DF:
            return self.grid
        smoothed = self._differences(0).mean
        return self._shaping[int(np.argmin(smoothed > smoothed.min() + 1e-12))]

    def optimum(self) -> Optimum:
        if self.grid is None or self.choice is None:
            return Optimum(grid=None, **self._stability())
        fitted = low = high = None
        if (place := self.minimum) is not None:
            fitted = self._setting_at(place.value)
            low, high = (None if end is None else self._setting_at(end) for end in (place.low, place.high))
        return Optimum(grid=self.grid.hp, choice=self.choice.hp, fitted=fitted, low=low, high=high, **self._stability())

    def regret(self, hp: float) -> tuple[float | None, float | None, float | None]:
        """Estimate and 95 % interval of what this row loses by the setting, relative to its best.

        The upper end is the largest over all cells of the curve, because the best of them is uncertain too.
        """
        here = self.cells.get(hp)
        if here is None or here.mean is None or self.choice is None or self.choice.mean is None:
            return None, None, None
        if self.curves is None or here not in self._shaping:
            estimate = float(self.points.scaled(np.array(here.mean)) - self.points.scaled(np.array(self.choice.mean)))
            if self.noise is None:
                return _share(estimate), None, None
            spread = self.noise.half_width * math.sqrt(1 / len(here.metrics) + 1 / len(self.choice.metrics))
            return _share(estimate), _share(estimate - spread), _share(estimate + spread)
        loss = self._differences(self._shaping.index(here))
        best = self._shaping.index(self.choice)
        if self.noise is None:
            return _share(-loss.mean[best]), None, None
        estimate, low = (-float(loss.only(best).quantile(share)[0]) for share in (0.5, 1 - TAIL))
        return _share(estimate), _share(low), _share(-float(loss.quantile(TAIL).min()))

    @cached_property
    def sureness(self) -> float | None:
        """The probability that no other cell is better than the choice (Bonferroni's lower bound).

        None where nothing tells the noise.
        """
        if self.curves is None or self.noise is None or self.choice is None:
            return None
        lower = 1 - self._differences(self._shaping.index(self.choice)).above(-1e-12)
        return max(1 - float(lower.sum()), 0.0)

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

    def band(self) -> Band | None:
        """The curve between the outermost cells that shape it; None where there is none."""
        if self.curves is None:
            return None
        used = np.array([self._position(cell) for cell in self._shaping])
        x = np.linspace(used[0], used[-1], 41)
        contrasts = np.hstack([np.eye(len(x)), np.full((len(x), len(used)), -1 / len(used))])
        curve = self.curves.values(self.axis, np.concatenate([x, used]), contrasts)
        middle = self.points.scaled(np.array([cell.mean for cell in self._shaping])).mean()
        ends = [curve.mean] * 3 if self.noise is None else [curve.quantile(s) for s in (0.5, TAIL, 1 - TAIL)]
        mean, low, high = (tuple(self.points.unscaled(middle + end).tolist()) for end in ends)
        return Band(positions=tuple(self._setting_at(place) for place in x), mean=mean, low=low, high=high)

    @cached_property
    def _shaping(self) -> list[Cell]:
        """The cells that shape the curve, ascending."""
        assert self.curves is not None
        on_curve = [cell for cell in self.finished if math.isfinite(self._position(cell))]
        return [on_curve[i] for i in self.curves.used[self.axis]]

    def _differences(self, i: int) -> Mixture:
        """The curve at each of its cells less that at cell i."""
        assert self.curves is not None
        contrasts = np.eye(len(self._shaping))
        contrasts[:, i] -= 1
        return self.curves.values(self.axis, np.array([self._position(c) for c in self._shaping]), contrasts)

    @cached_property
    def minimum(self) -> Interval | None:
        """Where the curve is lowest; None where nothing bounds it."""
        if self.curves is None or self.choice is None:
            return None
        used = np.array([self._position(cell) for cell in self._shaping])
        settled = [self._position(cell) for cell in self.cells.values() if cell.outcome.settled]
        below = max((place for place in settled if -math.inf < place < used[0]), default=None)
        above = min((place for place in settled if place > used[-1]), default=None)
        near = self._position(self.choice)
        return locate(self.curves, self.axis, positions=used, near=near, below=below, above=above)

    def _position(self, cell: Cell) -> float:
        return _position_of(cell.hp, log2_hp=self.log2_hp)

    def _setting_at(self, position: float) -> float:
        return float(2.0**position if self.log2_hp else position)

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


def _share(difference: float) -> float:
    """The relative loss of a difference on the curve's scale; none below 0."""
    return math.expm1(max(difference, 0.0)) + 0.0  # no -0


def _noise(points: Mapping[float, RowPoints], *, paired: bool) -> Noise | None:
    """From replicates alone."""
    parts = [
        reduce(one.scaled(one.metrics), np.ones(len(one.positions)), paired=paired)
        for one in points.values()
        if len(one.positions)
    ]
    df = sum(part.df for part in parts)
    return Noise(variance=sum(part.sse for part in parts) / df, df=df) if df > 0 else None


def _fit(points: Mapping[float, RowPoints], *, paired: bool) -> Curves | None:
    """The curves of the rows that have some; None where no row has three cells to shape one."""
    sizes = {axis: len(one.near_minimum(MIN_CELLS)) for axis, one in points.items()}
    rows = {axis: one for axis, one in points.items() if sizes[axis] >= 2}
    if max(sizes.values(), default=0) < MIN_CELLS:
        return None
    has_doublings = len(rows) > 1 and min(rows) > 0
    places = np.log2(list(rows)) if has_doublings else np.zeros(len(rows))
    doublings = dict(zip(rows, (places - places.mean()).tolist(), strict=True))
    return Curves(rows, doublings, paired=paired)


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
        best=best.mean if best is not None and best.mean is not None else 0.0,
        level=abs(best.mean) if best is not None and best.mean else 1.0,
    )
