"""`muxfer verdict --table`: does the optimum transfer along the axis, in a user's table?

A row is one run: an axis (width, batch, steps), a setting, a metric, and a seed if runs share one. Rows become the
judge's cells at once, because ten million of them would be too many records. Equal rows are counted once, with a note.
Rows that contradict each other are refused. The order of the rows never matters.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from muxfer.analysis.cells import Cell, Table
from muxfer.analysis.transferability import judge_table
from muxfer.commands.csv_columns import lines_of, read_columns
from muxfer.commands.result import CommandResult
from muxfer.errors import BadInput, NotConfirmed
from muxfer.report.format import TERMINAL
from muxfer.report.text import cells_text
from muxfer.trial import Outcome, Verdict

MAX_VALUES = 2_000  # Distinct values of an axis or a setting. A column with more of them is no grid.
MAX_CELLS = 100_000

MAX_SHOWN = 64  # The most rows or columns of a table that is printed in a terminal
SAME = 1e-9  # Values of a grid whose relative difference is at most this are one value, written by two programs

SHUFFLER = 0x9E3779B97F4A7C15
"""An odd number. The bits of numbers times this, modulo 2^64, have no visible order; its inverse undoes that."""
MAX_REPLICATES = 1_000  # A cell with more runs gives the judge the means of this many groups of them

EXTREME = 1e20
"""The largest number, and 1 over the smallest above 0. The fourth power of a ratio of such numbers is still finite."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The file and the names of its columns. If `seed` is None, runs of different cells share nothing."""

    path: str
    axis: str
    hp: str
    metric: str
    seed: str | None = None

    def refuse(self, row: int, what: str) -> BadInput:
        return BadInput(f"{self.path}, line {lines_of(self.path, [row])[0]}: {what}")


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """The table as cells. A replicate of a cell is the mean of `per_replicate` runs. A cell has at most `most` runs."""

    table: Table
    num_rows: int
    num_duplicates: int
    per_replicate: float
    most: int


def verdict(
    path: str, *, axis: str, hp: str, metric: str, mode: str = "min", log2_hp: bool = False, seed: str | None = None
) -> CommandResult:
    """The result of `muxfer verdict --table`. Exit code 0 if the optimum transfers, otherwise 6."""
    columns = Columns(path=path, axis=axis, hp=hp, metric=metric, seed=seed)
    names = [name for name in (axis, hp, metric, seed) if name is not None]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise BadInput(f"column {repeated!r} is named twice: --axis, --hp, --metric and --seed are different columns")
    values = read_columns(path, names)
    sign = -1.0 if mode == "max" else 1.0
    grouped = group(values, columns, sign=sign, log2_hp=log2_hp)
    judged = judge_table(grouped.table, axis=axis, hp=hp, log2_hp=log2_hp, paired=seed is not None)
    if judged.noise is not None:
        judged = replace(judged, noise=judged.noise * math.sqrt(grouped.per_replicate))
    notes = list(_notes(grouped, columns, log2_hp=log2_hp))
    data = {
        **judged.to_dict(),
        "table": path,
        "metric": metric,
        "mode": mode,
        "rows": grouped.num_rows,
        "duplicates": grouped.num_duplicates,
        "notes": notes,
    }
    text = _text(grouped, judged, metric, notes, sign=sign)
    return CommandResult(data=data, text=text, exit_code=0 if judged.verdict == "transfers" else NotConfirmed.exit_code)


def group(values: Mapping[str, np.ndarray], columns: Columns, *, sign: float, log2_hp: bool) -> Grouped:
    """Cells by axis value and setting. The metric times `sign` is minimized. BadInput names the line."""
    places, codes = _cell_codes(values, columns, log2_hp=log2_hp)
    metrics = _minimized(values[columns.metric], columns, sign=sign)
    order = np.argsort(codes.astype(np.uint16) if codes.max() < 1 << 16 else codes, kind="stable")
    rows_of_cells = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    if columns.seed is None:
        runs = [_shuffled(np.unique(metrics[rows])) for rows in rows_of_cells]
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
    for (axis, hp), each, number in zip(places, runs, numbers, strict=True):
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


def _cell_codes(
    values: Mapping[str, np.ndarray], columns: Columns, *, log2_hp: bool
) -> tuple[list[tuple[float, float]], np.ndarray]:
    """The axis value and setting of each cell, in ascending order, and for each row a number that orders its cell."""
    axis_levels, axis_codes = _levels(values, columns.axis, columns)
    hp_levels, hp_codes = _levels(values, columns.hp, columns)
    if axis_levels[0] <= 0:
        row = int(np.argmin(values[columns.axis]))
        raise columns.refuse(row, f"{columns.axis} is {axis_levels[0]:g}, expected a size above 0 (not its logarithm)")
    if log2_hp and hp_levels[0] <= 0:
        row = int(np.argmin(values[columns.hp]))
        fault = f"{columns.hp} is {hp_levels[0]:g}, which has no log2"
        raise columns.refuse(row, f"{fault}; leave --log2-hp off if the column is log2 already")
    codes = axis_codes * len(hp_levels) + hp_codes
    cells = np.flatnonzero(np.bincount(codes))
    if len(cells) > MAX_CELLS:
        raise BadInput(
            f"{columns.path} has {len(cells)} pairs of {columns.axis} and {columns.hp}, more than {MAX_CELLS}: expected"
            " a grid; round the setting to one"
        )
    return [
        (float(axis_levels[cell // len(hp_levels)]), float(hp_levels[cell % len(hp_levels)])) for cell in cells
    ], codes


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
        lines = lines_of(columns.path, pair)
        raise BadInput(
            f"{columns.path}, lines {lines[0]} and {lines[1]}: the same {columns.axis}, {columns.hp} and {columns.seed}"
            f" with {columns.metric} {given[0]} and {given[1]}; keep one of them"
        )
    return kept, numbers


def _shuffled(distinct: np.ndarray) -> np.ndarray:
    """The values in an order that depends neither on the rows nor on size: groups of neighbours are fair samples."""
    bits = np.sort(distinct.view(np.uint64) * np.uint64(SHUFFLER))
    return (bits * np.uint64(pow(SHUFFLER, -1, 1 << 64))).view(np.float64)


def _cell(axis: float, hp: float, replicates: np.ndarray, numbers: np.ndarray) -> Cell:
    finite = np.isfinite(replicates)
    outcome = Outcome.FINISHED if finite.all() else Outcome.DIVERGED
    replicates, numbers = replicates[finite], numbers[finite]
    mean = math.fsum(replicates.tolist()) / len(replicates) if outcome is Outcome.FINISHED else None
    sums, counts = np.bincount(numbers, replicates), np.bincount(numbers)
    metrics = {int(number): float(sums[number] / counts[number]) for number in np.flatnonzero(counts)}
    return Cell(axis=axis, hp=hp, outcome=outcome, metrics=metrics, mean=mean, step=0)


def _notes(grouped: Grouped, columns: Columns, *, log2_hp: bool) -> Iterator[str]:
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
