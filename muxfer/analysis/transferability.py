"""Does the best value of a setting stay put while the task grows?

A person who reads the argmin off a grid believes it, and learns at the large run that it was wrong. So the question is
asked in loss, not in learning rates: what does the largest task lose by using the optimum of the smallest? The answer
is `transfers`, `drifts`, or `abstains` where the grid cannot tell, each with one sentence that says why.

Records of a target, and trials that failed, say nothing here. A trial that diverged says that the optimum lies to its
side: it closes a bracket, it is not dropped. This first reading has no error bars (`low` and `high` stay None).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muxfer.errors import BadInput
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict

TOLERATED_REGRET = 0.02
"""An optimum transfers while the largest task loses at most this share of its best loss by using it."""

BASIN = 0.10
"""Second neighbours of the minimum shape its parabola only while they are at most this share above it."""

CLOSES = (Outcome.FINISHED, Outcome.DIVERGED, Outcome.PRUNED)
"""What a neighbour of the optimum must have become for the optimum to lie inside the grid, on that side."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of the setting at one axis value, over its replicates.

    `outcome` is diverged if any replicate diverged, else pruned if any was pruned, else finished if any finished.
    `mean` is None unless finished; `step` is where the first replicate diverged, else the last step trained.
    """

    axis: float
    hp: float
    outcome: Outcome
    metrics: Mapping[int, float]
    mean: float | None
    step: int


Table = Mapping[float, Mapping[float, Cell]]
"""Cells by axis value, then by the setting's value, both ascending."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best setting at the largest axis value: its mean metric, and its records, the best replicate first."""

    setting: Setting
    metric: float
    records: tuple[Record, ...]


def judge(records: Sequence[Record], *, axis: str, hp: str, log2_hp: bool = True) -> Verdict:
    """Whether the optimum of `hp` transfers along `axis`.

    `log2_hp` takes log2 of the setting before a parabola or a slope is fitted; leave it off where it is log2 already.
    Where further settings vary they are held at their best (see `at_best_others`). BadInput when a record lacks one
    of the two settings, or has text for it.
    """
    table = settled_table(records, axis, hp)
    optimum = {value: _optimum(cells, log2_hp) for value, cells in table.items()}
    regret = _regrets(table, optimum)
    reading, why = _read(table, optimum, regret, axis, hp)
    drift = {"value": _drift(optimum, log2_hp), "low": None, "high": None}
    return Verdict(verdict=reading, why=why, axis=axis, hp=hp, optimum=optimum, drift_per_doubling=drift, regret=regret)


def best_setting(records: Sequence[Record], *, axis: str, hp: str) -> Best | None:
    """What the study recommends: the best mean metric at the largest axis value. None: nothing finished there."""
    records = at_best_others(records, axis, hp)
    table = settled_table(records, axis, hp)
    row = table[max(table)] if table else {}
    if (best := _best_cell(row)) is None or best.mean is None:
        return None
    same = [r for r in records if (_number(r, axis), _number(r, hp)) == (best.axis, best.hp) and r.metric is not None]
    same.sort(key=lambda record: (record.metric, record.replicate))
    return Best(setting=dict(same[0].setting), metric=best.mean, records=tuple(same))


def inside_grid(records: Sequence[Record], *, axis: str, hp: str) -> bool:
    """Whether the best setting at the largest axis value has a settled neighbour on both sides, diverged or not."""
    table = settled_table(records, axis, hp)
    row = table[max(table)] if table else {}
    best = _best_cell(row)
    return best is not None and None not in _bracket(row, best)


def settled_table(records: Sequence[Record], axis: str, hp: str) -> Table:
    """The study as a table: a cell for each axis value and each value of the setting, averaged over replicates."""
    groups: dict[tuple[float, float], list[Record]] = {}
    for record in at_best_others(records, axis, hp):
        groups.setdefault((_number(record, axis), _number(record, hp)), []).append(record)
    table: dict[float, dict[float, Cell]] = {}
    for (axis_value, hp_value), group in sorted(groups.items()):
        table.setdefault(axis_value, {})[hp_value] = _cell(axis_value, hp_value, group)
    return table


def at_best_others(records: Sequence[Record], axis: str, hp: str) -> list[Record]:
    """The proxies among the records, with every third setting held where it is best at the largest axis value.

    A study that varies one setting along one axis comes back whole. One that varies more is cut to the slice through
    its best point, for a curve over `hp` that mixes two batch sizes has no optimum of its own.
    """
    proxies = [record for record in records if record.kind == "proxy"]
    others: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in proxies:
        rest = tuple(sorted((k, repr(v)) for k, v in record.setting.items() if k not in (axis, hp)))
        others.setdefault(rest, []).append(record)
    if len(others) < 2:
        return proxies
    largest = max(_number(record, axis) for record in proxies)

    def lowest(slice_: list[Record]) -> float:
        at_largest = [record for record in slice_ if _number(record, axis) == largest]
        means = [cell.mean for row in settled_table(at_largest, axis, hp).values() for cell in row.values()]
        return min((mean for mean in means if mean is not None), default=math.inf)

    return min(others.values(), key=lowest)


def shown(value: float) -> str:
    """A setting's value as people write it: 2^-7 for an exact power of two below one, 0.003, 64."""
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 and exponent <= 0 else f"{value:.10g}"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _number(record: Record, name: str) -> float:
    value = record.setting.get(name)
    if isinstance(value, str) or value is None:
        known = ", ".join(sorted(record.setting)) or "no setting"
        raise BadInput(f"trial {record.key} has {name} {value!r}: expected a number; it was given {known}")
    return float(value)


def _cell(axis: float, hp: float, group: Sequence[Record]) -> Cell:
    outcomes = {record.outcome for record in group}
    outcome = next(o for o in (Outcome.DIVERGED, Outcome.PRUNED, Outcome.FINISHED, Outcome.FAILED) if o in outcomes)
    metrics = {r.replicate: r.metric for r in sorted(group, key=lambda r: r.replicate) if r.metric is not None}
    mean = math.fsum(metrics.values()) / len(metrics) if outcome is Outcome.FINISHED else None
    steps = [record.step for record in group if record.outcome is outcome]
    step = min(steps) if outcome is Outcome.DIVERGED else max(steps)
    return Cell(axis=axis, hp=hp, outcome=outcome, metrics=metrics, mean=mean, step=step)


def _best_cell(row: Mapping[float, Cell]) -> Cell | None:
    """The lowest mean; of equals the smaller value of the setting, for it is the one farther from divergence."""
    finished = [cell for cell in row.values() if cell.mean is not None]
    return min(finished, key=lambda cell: (cell.mean, cell.hp), default=None)


def _bracket(row: Mapping[float, Cell], best: Cell) -> tuple[Cell | None, Cell | None]:
    """The nearest cells below and above the optimum that settled; None where the grid ends."""
    settled = [cell for cell in row.values() if cell.outcome in CLOSES]
    below = max((cell for cell in settled if cell.hp < best.hp), key=lambda cell: cell.hp, default=None)
    above = min((cell for cell in settled if cell.hp > best.hp), key=lambda cell: cell.hp, default=None)
    return below, above


def _optimum(row: Mapping[float, Cell], log2_hp: bool) -> Optimum:
    best = _best_cell(row)
    return Optimum(grid=None) if best is None else Optimum(grid=best.hp, fitted=_vertex(row, best, log2_hp))


def _vertex(row: Mapping[float, Cell], best: Cell, log2_hp: bool) -> float | None:
    """Least-squares parabola through the 3 to 5 points around the minimum; None where it has no vertex between them.

    The two neighbours always take part, the second ones while they are within BASIN; what diverged bounds the vertex
    but shapes nothing.
    """
    below, above = _bracket(row, best)
    if best.mean is None or below is None or above is None or (log2_hp and below.hp <= 0):
        return None
    settled = [cell for cell in row.values() if cell.outcome in CLOSES and (cell.hp > 0 or not log2_hp)]
    middle = settled.index(best)
    ceiling = best.mean + BASIN * abs(best.mean)
    points = [(best.hp, best.mean)]
    for side in (settled[max(middle - 2, 0) : middle][::-1], settled[middle + 1 : middle + 3]):
        for distance, cell in enumerate(side):
            if cell.mean is None or (distance > 0 and cell.mean > ceiling):
                break
            points.append((cell.hp, cell.mean))
    if len(points) < 3:
        return None
    x = np.array([_position(hp, log2_hp) for hp, _ in points]) - _position(best.hp, log2_hp)
    y = np.array([mean for _, mean in points]) - best.mean
    scale = float(np.abs(x).max())
    curvature, slope, _ = (float(c) for c in np.polyfit(x / scale, y, 2))
    if curvature <= 1e-12 * abs(best.mean):
        return None
    vertex = _position(best.hp, log2_hp) - scale * slope / (2 * curvature)
    if not _position(below.hp, log2_hp) < vertex < _position(above.hp, log2_hp):
        return None
    return 2.0**vertex if log2_hp else vertex


def _position(hp: float, log2_hp: bool) -> float:
    return math.log2(hp) if log2_hp else hp


def _drift(optimum: Mapping[float, Optimum], log2_hp: bool) -> float | None:
    """Least-squares slope of the optimum (fitted where it is, else the grid's) over log2 of the axis."""
    found = {axis: o.grid if o.fitted is None else o.fitted for axis, o in optimum.items()}
    points = {axis: value for axis, value in found.items() if value is not None and axis > 0}
    if len(points) < 2 or (log2_hp and min(points.values()) <= 0):
        return None
    x = np.log2(list(points))
    y = np.array([_position(value, log2_hp) for value in points.values()])
    return float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))


def _regrets(table: Table, optimum: Mapping[float, Optimum]) -> tuple[Regret, ...]:
    """A smaller axis value whose optimum never ran at the largest has no regret: it is left out, not guessed."""
    if not table:
        return ()
    largest = max(table)
    best = _best_cell(table[largest])
    regrets = []
    for axis, found in optimum.items():
        cell = None if found.grid is None else table[largest].get(found.grid)
        if axis == largest or best is None or best.mean is None or cell is None:
            continue
        if cell.outcome is Outcome.DIVERGED:
            regrets.append(Regret(from_=axis, to=largest, setting=cell.hp, relative=None))
        elif cell.mean is not None and best.mean != 0:
            relative = (cell.mean - best.mean) / abs(best.mean)
            regrets.append(Regret(from_=axis, to=largest, setting=cell.hp, relative=relative))
    return tuple(regrets)


def _read(
    table: Table, optimum: Mapping[float, Optimum], regret: Sequence[Regret], axis: str, hp: str
) -> tuple[str, str]:
    if len(table) < 2:
        held = f"every trial has {axis} {min(table):g}" if table else "no trial has settled"
        return "abstains", f"{held}: transfer needs at least two values of {axis}"
    smallest, largest = min(table), max(table)
    for value, row in table.items():
        num_points = sum(cell.outcome in CLOSES for cell in row.values())
        if optimum[value].grid is None:
            return "abstains", f"no {hp} of the {num_points} tried has a finite loss at {axis} {value:g}"
        if num_points < 3:
            return "abstains", f"{axis} {value:g} has {num_points} values of {hp}: an optimum needs at least 3"
    chosen = optimum[smallest].grid or 0.0
    subject = f"the optimum of {axis} {smallest:g} ({hp} {shown(chosen)})"
    found = next((r for r in regret if r.from_ == smallest), None)
    if found is None:
        return "abstains", f"{subject} has no result at {axis} {largest:g}: run it there"
    # An optimum at the grid's end does not soften these two: the true one lies farther out, and would cost more.
    if found.relative is None:
        return "drifts", f"{subject} diverges at {axis} {largest:g}"
    cost = f"{subject} costs {percent(found.relative)} at {axis} {largest:g}"
    if found.relative > TOLERATED_REGRET * (1 + 1e-9):  # 1.02 over 1.00 is 2 %, though not in binary
        return "drifts", f"{cost}, more than the tolerated {100 * TOLERATED_REGRET:g} %"
    for value, row in table.items():
        best = _best_cell(row)
        assert best is not None
        below, above = _bracket(row, best)
        if below is None or above is None:
            end, side = ("lower", "below") if below is None else ("upper", "above")
            at_end = f"the optimum of {axis} {value:g} is the grid's {end} end ({hp} {shown(best.hp)})"
            return "abstains", f"{at_end}: extend the grid {side} it"
    return "transfers", f"{cost}, and the optimum lies inside the grid at every {axis}"
