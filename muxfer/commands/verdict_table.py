"""`muxfer verdict --table`: does the optimum transfer along the axis, in a user's table?

A row is one run: an axis (width, batch, steps), a setting, a metric, and a seed if runs share one. Rows become the
judge's cells at once, because ten million of them would be too many records. Which rows are runs of one grid is decided
in `muxfer.commands.run_rows`. Rows that contradict each other are refused. The order of the rows never matters.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from muxfer.analysis.cells import Cell, Table, shown
from muxfer.analysis.transferability import judge_table
from muxfer.commands.csv_columns import lines_of, read_columns
from muxfer.commands.result import CommandResult
from muxfer.commands.run_rows import choose_rows, copies, refuse_mixed
from muxfer.errors import BadInput, NotConfirmed
from muxfer.report.format import TERMINAL
from muxfer.report.text import cells_text
from muxfer.trial import Outcome, Verdict

MAX_VALUES = 2_000  # Distinct values of an axis or a setting. A column with more of them is no grid.
MAX_CELLS = 100_000

MAX_SHOWN = 64  # The most rows or columns of a table that is printed in a terminal
SAME = 1e-9  # Values of a grid whose relative difference is at most this are one value, written by two programs

NEAR = 0.02
"""Values of a setting that differ by at most this share of a grid step are one value, rounded by two programs: 0.01105
and 0.0111 lie 1.3 % of a step of √2 apart."""

SHUFFLER = 0x9E3779B97F4A7C15
"""An odd number. The bits of numbers times this, modulo 2^64, have no visible order; its inverse undoes that."""
MAX_REPLICATES = 1_000  # A cell with more runs gives the judge the means of this many groups of them

EXTREME = 1e20
"""The largest number, and 1 over the smallest above 0. The fourth power of a ratio of such numbers is still finite."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The file and the names of its columns. If `seed` is None, runs of different cells share nothing.

    `rows` are the numbers in the file of the rows that were chosen.
    """

    path: str
    axis: str
    hp: str
    metric: str
    seed: str | None = None
    rows: np.ndarray = field(default_factory=lambda: np.arange(0))

    @property
    def names(self) -> list[str]:
        return [name for name in (self.axis, self.hp, self.metric, self.seed) if name is not None]

    def lines(self, rows: Sequence[int]) -> list[int]:
        """The lines in the file of these chosen rows."""
        return lines_of(self.path, [int(self.rows[row]) for row in rows])

    def refuse(self, row: int, what: str) -> BadInput:
        return BadInput(f"{self.path}, line {self.lines([row])[0]}: {what}")


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """The table as cells. A replicate of a cell is the mean of `per_replicate` runs. A cell has at most `most` runs."""

    table: Table
    num_rows: int
    num_duplicates: int
    per_replicate: float
    most: int


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of a table: axis value and setting of each, ascending, and for each row a number that orders its cell.

    `merged` are values of the setting that were taken for one value.
    """

    places: Sequence[tuple[float, float]]
    codes: np.ndarray
    merged: Sequence[tuple[float, float]]


def verdict(
    path: str,
    *,
    axis: str,
    hp: str,
    metric: str,
    mode: str = "min",
    log2_hp: bool = False,
    seed: str | None = None,
    where: Sequence[str] = (),
) -> CommandResult:
    """The result of `muxfer verdict --table`. Exit code 0 if the optimum transfers, otherwise 6."""
    columns = Columns(path=path, axis=axis, hp=hp, metric=metric, seed=seed)
    names = columns.names
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"column {repeated!r} is named twice: --axis, --hp, --metric and --seed are different columns")
    values = read_columns(path, names)
    chosen = choose_rows(path, [values[axis], values[hp]], names, where)
    columns = replace(columns, rows=chosen.numbers)
    sign = -1.0 if mode == "max" else 1.0
    values = {name: column[chosen.numbers] for name, column in values.items()}
    grid = find_grid(values, columns, log2_hp=log2_hp)
    refuse_mixed(path, chosen.numbers, grid.codes, names, f"{axis} and {hp}")
    grouped = group(values, grid, columns, sign=sign)
    judged = judge_table(grouped.table, axis=axis, hp=hp, log2_hp=log2_hp, paired=seed is not None)
    if judged.noise is not None:
        judged = replace(judged, noise=judged.noise * math.sqrt(grouped.per_replicate))
    notes = [*chosen.notes, *_notes(grouped, grid, columns, log2_hp=log2_hp)]
    data = {
        **judged.to_dict(),
        "table": path,
        "metric": metric,
        "mode": mode,
        "rows": grouped.num_rows,
        "left_out": chosen.num_left_out,
        "duplicates": grouped.num_duplicates,
        "notes": notes,
    }
    text = _text(grouped, judged, metric, notes, sign=sign)
    return CommandResult(data=data, text=text, exit_code=0 if judged.verdict == "transfers" else NotConfirmed.exit_code)


def group(values: Mapping[str, np.ndarray], grid: "Grid", columns: Columns, *, sign: float) -> Grouped:
    """Cells by axis value and setting. The metric times `sign` is minimized. BadInput names the line."""
    codes = grid.codes
    metrics = _minimized(values[columns.metric], columns, sign=sign)
    order = np.argsort(codes.astype(np.uint16) if codes.max() < 1 << 16 else codes, kind="stable")
    rows_of_cells = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    if columns.seed is None:
        is_copy = _copies(rows_of_cells, metrics, columns)
        runs = [_shuffled(metrics[rows[~is_copy[rows]]]) for rows in rows_of_cells]
        numbers = [np.arange(len(each)) for each in runs]
        num_numbers = max(map(len, runs))
    else:
        _assert_finite(values[columns.seed], columns.seed, columns)
        seeds = np.unique(values[columns.seed], return_inverse=True)[1]
        pairs = [_one_per_seed(rows, metrics, seeds, columns) for rows in rows_of_cells]
        runs, numbers = [kept for kept, _ in pairs], [number for _, number in pairs]
        num_numbers = int(seeds.max()) + 1
    group_size = math.ceil(num_numbers / MAX_REPLICATES)
    table: dict[float, dict[float, Cell]] = {}
    for (axis, hp), each, number in zip(grid.places, runs, numbers, strict=True):
        table.setdefault(axis, {})[hp] = _cell(axis, hp, each, number // group_size)
    num_replicates = sum(len(cell.metrics) for row in table.values() for cell in row.values())
    num_finite = sum(int(np.isfinite(each).sum()) for each in runs)
    return Grouped(
        table=table,
        num_rows=len(metrics),
        num_duplicates=len(metrics) - sum(map(len, runs)),
        per_replicate=num_finite / max(num_replicates, 1),
        most=max(map(len, runs)),
    )


def find_grid(values: Mapping[str, np.ndarray], columns: Columns, *, log2_hp: bool) -> Grid:
    """The cells of a table. BadInput where its columns are no grid."""
    axis_levels, axis_codes = _levels(values, columns.axis, columns)
    hp_levels, hp_codes = _levels(values, columns.hp, columns)
    if axis_levels[0] <= 0:
        row = int(np.argmin(values[columns.axis]))
        raise columns.refuse(row, f"{columns.axis} is {axis_levels[0]:g}, expected a size above 0 (not its logarithm)")
    if log2_hp and hp_levels[0] <= 0:
        row = int(np.argmin(values[columns.hp]))
        fault = f"{columns.hp} is {hp_levels[0]:g}, which has no log2"
        raise columns.refuse(row, f"{fault}; leave --log2-hp off if the column is log2 already")
    is_same = _same_steps(hp_levels)
    merged = [(float(hp_levels[i]), float(hp_levels[i + 1])) for i in np.flatnonzero(is_same)]
    hp_codes = np.concatenate([[0], np.cumsum(~is_same)])[hp_codes]
    hp_levels = hp_levels[np.concatenate([[True], ~is_same])]
    codes = axis_codes * len(hp_levels) + hp_codes
    cells = np.flatnonzero(np.bincount(codes))
    if len(cells) > MAX_CELLS:
        raise BadInput(
            f"{columns.path} has {len(cells)} pairs of {columns.axis} and {columns.hp}, more than {MAX_CELLS}: expected"
            " a grid; round the setting to one"
        )
    width = len(hp_levels)
    places = [(float(axis_levels[cell // width]), float(hp_levels[cell % width])) for cell in cells]
    return Grid(places=places, codes=codes, merged=merged)


def _same_steps(levels: np.ndarray) -> np.ndarray:
    """Which steps between ascending values are roundings of one value: bool [n-1].

    Roundings lie much closer together than the grid's values do, at most NEAR of a step apart, and are equal to a few
    digits. Rates are compared by their ratios.
    """
    is_rate = levels[0] > 0
    steps = np.diff(np.log2(levels) if is_rate else levels)
    if len(steps) < 2:
        return np.zeros(len(steps), dtype=bool)
    ascending = np.sort(steps)
    ratios = ascending[1:] / ascending[:-1]
    widest = int(ratios.argmax())
    limit = NEAR * ascending[widest + 1] if ratios[widest] * NEAR >= 1 else 0.0
    return (steps <= limit) & (steps <= NEAR * (1.0 if is_rate else np.abs(levels[1:])))


def _copies(rows_of_cells: Sequence[np.ndarray], metrics: np.ndarray, columns: Columns) -> np.ndarray:
    """Which rows repeat an earlier one whole, bool [N]. Only rows of a cell with equal metrics are read again."""
    repeated = []
    for rows in rows_of_cells:
        _, inverse, counts = np.unique(metrics[rows], return_inverse=True, return_counts=True)
        repeated.append(rows[counts[inverse] > 1])
    candidates = np.sort(np.concatenate(repeated))
    is_copy = np.zeros(len(metrics), dtype=bool)
    is_copy[candidates] = copies(columns.path, columns.rows[candidates], metrics[candidates], columns.names)
    return is_copy


def _minimized(metrics: np.ndarray, columns: Columns, *, sign: float) -> np.ndarray:
    """The metric times `sign`. It is infinite if the run diverged: its field has no number or an infinite one."""
    metrics = np.where(np.isfinite(metrics), sign * metrics + 0.0, np.inf)
    extreme = _extreme(metrics) & np.isfinite(metrics)
    if extreme.any():
        row = int(np.argmax(extreme))
        fault = f"{columns.metric} is {sign * metrics[row]:g}, expected 0 or {1 / EXTREME:g} to {EXTREME:g} in size"
        raise columns.refuse(row, f"{fault}; leave it empty if the run diverged")
    return metrics


def _assert_finite(values: np.ndarray, name: str, columns: Columns) -> None:
    bad = _extreme(values)
    if bad.any():
        row = int(np.argmax(bad))
        given = "empty" if np.isnan(values[row]) else f"{values[row]:g}"
        fault = f"{name} is {given}, expected 0 or {1 / EXTREME:g} to {EXTREME:g} in size"
        raise columns.refuse(row, f"{fault}; only a metric may be empty")


def _extreme(values: np.ndarray) -> np.ndarray:
    """Which values are too large, too close to 0, or NaN."""
    size = np.abs(values)
    return ~((size <= EXTREME) & (size >= 1 / EXTREME)) & (values != 0)


def _levels(table: Mapping[str, np.ndarray], name: str, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of a column, ascending, and for each row the index of its value."""
    values = table[name]
    _assert_finite(values, name, columns)
    distinct = np.unique(values + 0.0)  # -0 becomes 0
    first = np.ones(len(distinct), dtype=bool)
    first[1:] = np.diff(distinct) > SAME * np.abs(distinct[1:])
    if first.sum() > MAX_VALUES:
        raise BadInput(
            f"{columns.path} has {first.sum()} values of {name}, more than {MAX_VALUES}: expected a grid; round them to"
            " one, or name another column"
        )
    return distinct[first], (np.cumsum(first) - 1)[np.searchsorted(distinct, values)]


def _one_per_seed(
    rows: np.ndarray, metrics: np.ndarray, seeds: np.ndarray, columns: Columns
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of each seed in a cell, and the seeds' numbers. Two different metrics of one seed are refused."""
    numbers, first, inverse = np.unique(seeds[rows], return_index=True, return_inverse=True)
    kept = metrics[rows][first]
    other = metrics[rows] != kept[inverse]
    if other.any():
        second = int(np.argmax(other))
        pair = sorted([int(rows[first[inverse[second]]]), int(rows[second])])
        given = [f"{metrics[row]:g}" if np.isfinite(metrics[row]) else "diverged" for row in pair]
        lines = columns.lines(pair)
        raise BadInput(
            f"{columns.path}, lines {lines[0]} and {lines[1]}: the same {columns.axis}, {columns.hp} and {columns.seed}"
            f" with {columns.metric} {given[0]} and {given[1]}; keep one of them"
        )
    return kept, numbers


def _shuffled(metrics: np.ndarray) -> np.ndarray:
    """The values in an order that depends neither on the rows nor on size: groups of neighbours are fair samples."""
    bits = np.sort(metrics.view(np.uint64) * np.uint64(SHUFFLER))
    return (bits * np.uint64(pow(SHUFFLER, -1, 1 << 64))).view(np.float64)


def _cell(axis: float, hp: float, replicates: np.ndarray, numbers: np.ndarray) -> Cell:
    finite = np.isfinite(replicates)
    outcome = Outcome.FINISHED if finite.all() else Outcome.DIVERGED
    replicates, numbers = replicates[finite], numbers[finite]
    mean = math.fsum(replicates.tolist()) / len(replicates) if outcome is Outcome.FINISHED else None
    sums, counts = np.bincount(numbers, replicates), np.bincount(numbers)
    metrics = {int(number): float(sums[number] / counts[number]) for number in np.flatnonzero(counts)}
    return Cell(axis=axis, hp=hp, outcome=outcome, metrics=metrics, mean=mean, step=0)


def _notes(grouped: Grouped, grid: Grid, columns: Columns, *, log2_hp: bool) -> Iterator[str]:
    if grid.merged:
        pairs = [f"{shown(low)} and {shown(high)}" for low, high in grid.merged]
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        yield f"taken for one value of {columns.hp}: {', '.join(pairs[:3])}{more}"
    if grouped.most > 1:
        yield f"each value is the mean of up to {grouped.most} runs"
    if count := grouped.num_duplicates:
        yield f"{count} duplicate row{'s were' if count > 1 else ' was'} counted once"
    hps = sorted({hp for row in grouped.table.values() for hp in row})
    if not log2_hp and len(hps) > 2 and hps[0] > 0:
        steps = np.diff(np.log2(hps))
        if steps.min() > 0.5 and steps.max() < 1.05 * steps.min():
            yield f"{columns.hp} grows by a factor: --log2-hp reads it in log2"


def _text(grouped: Grouped, judged: Verdict, metric: str, notes: list[str], *, sign: float) -> str:
    """The table with the metric as in the file, unless it is too large to print, and the verdict."""
    if max(len(grouped.table), max(map(len, grouped.table.values()))) <= MAX_SHOWN:
        shown = {
            axis: {hp: replace(c, mean=None if c.mean is None else sign * c.mean, metrics={}) for hp, c in row.items()}
            for axis, row in grouped.table.items()
        }
        lines = [cells_text(shown, judged, metric=metric)]
    else:
        lines = textwrap.wrap(f"verdict: {judged.verdict}: {judged.why}", TERMINAL, subsequent_indent="  ")
    lines += [line for note in notes for line in textwrap.wrap(f"note: {note}", TERMINAL, subsequent_indent="  ")]
    return "\n".join(lines)
