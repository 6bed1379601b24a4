"""Does the best value of a setting stay put while the task grows, and how surely?

A person who reads the argmin off a grid believes it, and learns at the large run that it was wrong. So the question is
asked in loss, with error bars: what does the largest task lose by using the optimum of a smaller one? The answer is

    transfers   the 95 % upper bound of that regret is at most TOLERATED_REGRET, or every axis value has the same grid
                optimum; and every optimum lies inside the grid
    drifts      the optimum's drift per doubling excludes 0, and the regret surely exceeds NOTABLE_REGRET or the optimum
                of the smallest diverges at the largest (there a grid optimum that marches on is drift enough)
    abstains    otherwise: the optimum at the grid's edge, too few points, noise larger than the differences

with one sentence that says why, and from which axis value on it transfers. Curves, noise and their intervals are
`muxfer.analysis.curves`. Records of a target, and trials that failed, say nothing here. A trial that diverged says that
the optimum lies to its side: it closes a bracket, it is not dropped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muxfer.analysis.cells import (
    CLOSES,
    TOLERATED_REGRET,
    Cell,
    Table,
    at_best_others,
    best_cell,
    bracket,
    number,
    percent,
    settled_table,
    shown,
)
from muxfer.analysis.curves import Curve, Noise, Points, drift_interval, fit_curves
from muxfer.analysis.scattered import best_scattered, is_scattered, judge_scattered
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict

NOTABLE_REGRET = 0.005
"""An optimum that drifts is worth a word once the largest task surely loses more than this share."""

NEAR = 0.03
"""Smoothing decides between settings whose measured metrics lie within this share: a parabola is no more than that."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best setting at the largest axis value: its mean metric, and its records, the best replicate first."""

    setting: Setting
    metric: float
    records: tuple[Record, ...]


@dataclass(frozen=True, kw_only=True)
class Band:
    """A fitted curve and its 95 % band: `positions` in the setting's own units, the rest in the metric's.

    `low` and `high` equal `mean` where nothing tells the noise.
    """

    positions: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def judge(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Verdict:
    """Whether the optimum of `hp` transfers along `axis`.

    `log2_hp` takes log2 of the setting before a curve is fitted; leave it off where it is log2 already. Where further
    settings vary they are held at their best (see `at_best_others`). BadInput when a record lacks one of the two
    settings, or has text for it.
    """
    if is_scattered(records, axis, hp):
        return judge_scattered(records, axis=axis, hp=hp)
    return judge_table(settled_table(records, axis, hp), axis=axis, hp=hp, log2_hp=log2_hp)


def judge_table(table: Table, *, axis: str, hp: str, log2_hp: bool = True, paired: bool = True) -> Verdict:
    """As `judge`, from cells. `paired` False: replicates of different cells share nothing."""
    study = _Study(table, log2_hp=log2_hp, paired=paired)
    rows = study.rows
    optimum = {value: row.optimum() for value, row in rows.items()}
    regret = study.regrets()
    drift = study.drift()
    reading, why, from_ = _read(study, regret, drift, axis, hp)
    return Verdict(
        verdict=reading,
        why=why,
        axis=axis,
        hp=hp,
        log2_hp=log2_hp,
        optimum=optimum,
        drift_per_doubling=drift,
        regret=regret,
        from_=from_,
        noise=None if study.noise is None else math.sqrt(study.noise.variance),
    )


def bands(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Mapping[float, Band]:
    """The fitted curve of each axis value that has one, between the outermost points that shape it."""
    if is_scattered(records, axis, hp):
        return {}
    study = _Study(settled_table(records, axis, hp), log2_hp=log2_hp, paired=True)
    found = {}
    for value, row in study.rows.items():
        if (curve := row.curve) is None:
            continue
        used = row.points.positions[curve.used]
        x = np.linspace(used[0], used[-1], 41)
        mean, level = curve.at(x), row.points.level
        spread = np.zeros_like(mean)
        if (noise := study.noise) is not None:
            spread = noise.quantile * np.sqrt(noise.variance * curve.variance_at(x))
        found[value] = Band(
            positions=tuple(row.setting_at(place) for place in x),
            mean=tuple((level * mean).tolist()),
            low=tuple((level * (mean - spread)).tolist()),
            high=tuple((level * (mean + spread)).tolist()),
        )
    return found


def best_setting(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Best | None:
    """What the study recommends: the smoothed choice at the largest axis value. None: nothing finished there."""
    if is_scattered(records, axis, hp):
        found = best_scattered(records, axis=axis)
        return None if found is None else Best(setting=found[0], metric=found[1], records=found[2])
    records = at_best_others(records, axis, hp)
    table = settled_table(records, axis, hp)
    if not table:
        return None
    row = _Study(table, log2_hp=log2_hp, paired=True).rows[max(table)]
    if row.choice is None or row.choice.mean is None:
        return None
    place = (row.choice.axis, row.choice.hp)
    same = [r for r in records if (number(r, axis), number(r, hp)) == place and r.metric is not None]
    same.sort(key=lambda record: (record.metric, record.replicate))
    return Best(setting=dict(same[0].setting), metric=row.choice.mean, records=tuple(same))


def inside_grid(records: Sequence[Record], *, axis: str, hp: str) -> bool:
    """Whether the best setting at the largest axis value has a settled neighbour on both sides, diverged or not."""
    if is_scattered(records, axis, hp):
        return best_scattered(records, axis=axis) is not None  # drawn between bounds: there is no next value to try
    table = settled_table(records, axis, hp)
    if not table:
        return False
    row = _Study(table, log2_hp=True, paired=True).rows[max(table)]
    return row.choice is not None and None not in bracket(row.cells, row.choice)


class _Row:
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


class _Study:
    """All rows, their pooled noise, and what they say of each other."""

    def __init__(self, table: Table, *, log2_hp: bool, paired: bool) -> None:
        self.rows = {axis: _Row(cells, log2_hp=log2_hp) for axis, cells in table.items()}
        self.log2_hp = log2_hp
        fitted = {axis: row.points for axis, row in self.rows.items() if len(row.points.positions)}
        curves, self.noise = fit_curves(fitted, paired=paired)
        for axis, row in self.rows.items():
            row.curve, row.noise = curves.get(axis), self.noise

    @property
    def largest(self) -> _Row:
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


def _points(row: _Row) -> Points:
    finished = [cell for cell in row.finished if math.isfinite(row.position(cell))]
    replicates = sorted({replicate for cell in finished for replicate in cell.metrics})
    column = {replicate: i for i, replicate in enumerate(replicates)}
    metrics = np.full((len(finished), len(replicates)), np.nan)
    for i, cell in enumerate(finished):
        metrics[i, [column[replicate] for replicate in cell.metrics]] = list(cell.metrics.values())
    diverged = tuple(row.position(cell) for cell in row.cells.values() if cell.outcome is Outcome.DIVERGED)
    positions = np.array([row.position(cell) for cell in finished])
    level = abs(row.grid.mean) if row.grid is not None and row.grid.mean else 1.0
    return Points(positions=positions, metrics=metrics, diverged=diverged, level=level)


def _transfers_from(study: _Study, regret: Sequence[Regret], first: float) -> bool:
    """Whether the axis values from `first` on transfer to the largest."""
    rows = {axis: row for axis, row in study.rows.items() if axis >= first}
    if len(rows) < 2 or any(row.choice is None or not row.closed(row.choice) for row in rows.values()):
        return False
    if any(sum(cell.outcome in CLOSES for cell in row.cells.values()) < 3 for row in rows.values()):
        return False
    own = [r for r in regret if r.from_ >= first]
    if len(own) < len(rows) - 1:
        return False
    grids = {row.grid.hp for row in rows.values() if row.grid is not None}
    if len(grids) == 1 and all(row.grid is not None and row.closed(row.grid) for row in rows.values()):
        return True
    return all(r.high is not None and r.high <= TOLERATED_REGRET * (1 + 1e-9) for r in own)


def _read(
    study: _Study, regret: Sequence[Regret], drift: Mapping[str, float | None], axis: str, hp: str
) -> tuple[str, str, float | None]:
    rows = study.rows
    if len(rows) < 2:
        held = f"every trial has {axis} {min(rows):g}" if rows else "no trial has settled"
        return "abstains", f"{held}: transfer needs at least two values of {axis}", None
    smallest, largest = min(rows), max(rows)
    for value, row in rows.items():
        num_points = sum(cell.outcome in CLOSES for cell in row.cells.values())
        if row.grid is None:
            return "abstains", f"no {hp} of the {num_points} tried has a finite loss at {axis} {value:g}", None
        if num_points < 3:
            why = f"{axis} {value:g} has {num_points} values of {hp}: an optimum needs at least 3"
            return "abstains", why, None
    from_ = next((value for value in rows if _transfers_from(study, regret, value)), None)
    later = f"; from {axis} {from_:g} on it transfers" if from_ not in (None, smallest) else ""
    chosen = rows[smallest].choice
    assert chosen is not None
    subject = f"the optimum of {axis} {smallest:g} ({hp} {shown(chosen.hp)})"
    found = next((r for r in regret if r.from_ == smallest), None)
    if found is None:
        return "abstains", f"{subject} has no result at {axis} {largest:g}: run it there{later}", from_
    low, high = drift["low"], drift["high"]
    moves = low is not None and high is not None and (low > 0 or high < 0)
    # An optimum at the grid's end does not soften these two: the true one lies farther out, and would cost more.
    if found.estimate is None:
        surely = moves or (low is None and study.marches())
        return "drifts" if surely else "abstains", f"{subject} diverges at {axis} {largest:g}{later}", from_
    cost = f"{subject} costs {percent(found.estimate)}{_at_most(found)} at {axis} {largest:g}"
    if moves and any(r.low is not None and r.low > NOTABLE_REGRET for r in regret):
        assert drift["value"] is not None
        unit = "in log2 " if study.log2_hp else ""
        return "drifts", f"{cost}, and it moves by {drift['value']:+.2f} {unit}per doubling{later}", from_
    for value, row in rows.items():
        if (best := row.choice) is None:
            continue
        below, above = bracket(row.cells, best)
        if len(row.finished) > 2 and len({cell.mean for cell in row.finished}) == 1:
            return "abstains", f"at {axis} {value:g} the metric does not depend on {hp}{later}", from_
        if below is None or above is None:
            end, side = ("lower", "below") if below is None else ("upper", "above")
            at_end = f"the optimum of {axis} {value:g} is the grid's {end} end ({hp} {shown(best.hp)})"
            return "abstains", f"{at_end}: extend the grid {side} it{later}", from_
    if from_ == smallest:
        if found.high is None or found.high <= TOLERATED_REGRET:
            return "transfers", f"{cost}, and the optimum lies inside the grid at every {axis}", from_
        same = f"every {axis} has the same grid optimum ({hp} {shown(found.setting)}), inside the grid"
        return "transfers", f"{same}; noise alone bounds its cost by {percent(found.high)}", from_
    if study.noise is None:
        return "abstains", f"{cost}, and nothing tells the noise: add values of {hp} or seeds{later}", from_
    bound = max((r for r in regret if r.high is not None), key=lambda r: r.high or 0.0, default=found)
    unsure = f"{cost}; it may be more than the tolerated {100 * TOLERATED_REGRET:g} %"
    if bound is not found and (found.high or 0.0) <= TOLERATED_REGRET:
        unsure = f"the optimum of {axis} {bound.from_:g} may cost {percent(bound.high or 0.0)} at {axis} {largest:g}"
    noise = percent(math.sqrt(study.noise.variance))
    return "abstains", f"{unsure}, and one trial's noise is {noise}: add seeds or values of {hp}{later}", from_


def _at_most(regret: Regret) -> str:
    return "" if regret.high is None else f" (at most {percent(regret.high)})"
