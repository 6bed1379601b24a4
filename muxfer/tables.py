"""What the trials of a study gave, as plain text: a table for the terminal, a CSV that gives every trial back.

How a number, an outcome or a drift is written is decided here, once, for the figures and the pages as well.
"""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from muxfer.analysis.transferability import Cell, Table, settled_table, shown
from muxfer.trial import Outcome, Record, Verdict

METRIC = "validation loss"
TERMINAL = 80


def table_text(records: Sequence[Record], verdict: Verdict) -> str:
    """The losses as aligned plain text: a row for each value of the setting, a column for each axis value.

    `*` marks the best of a column; a setting that diverged shows the first step at which a replicate did.
    """
    table = settled_table(records, verdict.axis, verdict.hp)
    if not table:
        return f"no trial has settled\nverdict  {verdict.verdict}: {verdict.why}"
    for short in (False, True):
        header = [verdict.hp, *(f"{axis:g} " if short else f"{verdict.axis} {axis:g}" for axis in table)]
        rows = [[shown(hp), *_texts(table, verdict, hp, short)] for hp in hp_values(table)]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= TERMINAL:
            break
    columns = f", by {verdict.axis}" if short else ""
    lines = [f"{METRIC}{columns}{mean_of(table)}; * best of its column", ""]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.append("")
    for axis, optimum in verdict.optimum.items():
        grid = "none finite" if optimum.grid is None else shown(optimum.grid)
        fitted = "" if optimum.fitted is None else f", fitted {log2_text(optimum.fitted)}"
        lines.append(f"optimum at {verdict.axis} {axis:g}: {grid}{fitted}")
    drift = verdict.drift_per_doubling.get("value")
    if drift is not None:
        lines.append(f"drift: {drift_text(drift, table, verdict)}")
    lines += textwrap.wrap(f"verdict: {verdict.verdict}: {verdict.why}", TERMINAL, subsequent_indent="  ")
    return "\n".join(lines)


def _texts(table: Table, verdict: Verdict, hp: float, short: bool) -> Iterator[str]:
    for axis, row in table.items():
        best = grid_optimum(verdict, axis)
        yield cell_text(row.get(hp), num_decimals(table), short) + ("*" if best == hp else " ")


def csv_text(records: Iterable[Record]) -> str:
    """One row a proxy trial: its settings, replicate, outcome, metric (empty: it has none) and last step."""
    proxies = ordered(record for record in records if record.kind == "proxy")
    names = sorted({name for record in proxies for name in record.setting})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "replicate", "outcome", "metric", "step"])
    for r in proxies:
        metric = "" if r.metric is None else repr(r.metric)
        writer.writerow([*(r.setting.get(name, "") for name in names), r.replicate, str(r.outcome), metric, r.step])
    return out.getvalue()


def ordered(records: Iterable[Record]) -> list[Record]:
    """As every list of trials shows them: proxies first, by setting, then by replicate."""

    def place(record: Record) -> list[tuple[str, float, str]]:
        items = sorted(record.setting.items())
        return [(name, 0.0, value) if isinstance(value, str) else (name, float(value), "") for name, value in items]

    return sorted(records, key=lambda record: (record.kind != "proxy", place(record), record.replicate, record.key))


def cell_text(cell: Cell | None, decimals: int, short: bool = False) -> str:
    if cell is None:
        return "-"
    if cell.mean is not None:
        return f"{cell.mean:.{decimals}f}" if abs(cell.mean) < 1e5 else f"{cell.mean:.1e}"
    if cell.outcome is Outcome.FAILED:
        return "failed"
    name = str(cell.outcome)
    return f"{name[:1] if short else name}@{cell.step}" if cell.step else name


def log2_text(value: float) -> str:
    return f"2^{math.log2(value):.2f} ({value:.3g})" if 0 < value < 1 else f"{value:.3g}"


def drift_text(drift: float, table: Table, verdict: Verdict) -> str:
    unit = f"log2 of {verdict.hp}" if is_log2(table) else verdict.hp
    return f"{drift:+.2f} in {unit} per doubling of {verdict.axis}"


def mean_of(table: Table) -> str:
    num_seeds = max((len(cell.metrics) for cell in all_cells(table)), default=1)
    return f", mean of {num_seeds} seeds" if num_seeds > 1 else ""


def grid_optimum(verdict: Verdict, axis: float) -> float | None:
    return verdict.optimum[axis].grid if axis in verdict.optimum else None


def best_losses(table: Table) -> dict[float, float | None]:
    """The lowest mean loss at each axis value; None: nothing finished there."""
    return {
        axis: min((cell.mean for cell in row.values() if cell.mean is not None), default=None)
        for axis, row in table.items()
    }


def num_decimals(table: Table) -> int:
    """Four significant digits of the best loss, the same for the whole table, so that columns compare at a glance."""
    best = min((abs(cell.mean) for cell in all_cells(table) if cell.mean), default=1.0)
    return min(max(3 - math.floor(math.log10(best)), 0), 8)


def is_log2(table: Table) -> bool:
    """Whether the setting is drawn over its log2: wherever it has one. A column that is log2 already is negative."""
    hps = hp_values(table)
    return bool(hps) and hps[0] > 0


def hp_values(table: Table) -> list[float]:
    return sorted({cell.hp for cell in all_cells(table)})


def all_cells(table: Table) -> list[Cell]:
    return [cell for row in table.values() for cell in row.values()]
