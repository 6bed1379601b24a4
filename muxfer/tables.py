"""What the trials of a study gave, as plain text: a table for the terminal, a CSV that gives every trial back.

How a number, an outcome or a drift is written is decided here, once, for the figures and the pages as well.
"""

import csv
import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from muxfer.analysis.cells import Cell, Table, held, percent, settled_table, shown
from muxfer.analysis.scattered import is_scattered
from muxfer.task import AXES
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict

METRIC = "validation loss"
TERMINAL = 80
BEST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting at the largest axis value: its mean metric, None if any of its replicates has none."""

    setting: Setting
    metric: float | None


def tried(records: Sequence[Record], axis: str) -> list[Tried]:
    """Every settled setting at the largest axis value, the best first, what diverged last.

    Finalists have one setting more than the others, the steps they were trained on for: they cannot be compared.
    """
    proxies = [r for r in records if r.kind == "proxy" and r.outcome is not Outcome.FAILED]
    names = Counter(frozenset(record.setting) for record in proxies)
    proxies = [r for r in proxies if names[frozenset(r.setting)] == max(names.values())]
    largest = max((float(r.setting.get(axis, 0)) for r in proxies), default=0.0)
    groups: dict[tuple[tuple[str, Any], ...], list[Record]] = {}
    for record in proxies:
        if float(record.setting.get(axis, 0)) == largest:
            groups.setdefault(tuple(sorted(record.setting.items())), []).append(record)
    found = []
    for setting, group in groups.items():
        metrics = [record.metric for record in group if record.metric is not None]
        mean = math.fsum(metrics) / len(metrics) if len(metrics) == len(group) else None
        found.append(Tried(setting=dict(setting), metric=mean))
    return sorted(found, key=lambda one: (one.metric is None, one.metric or 0.0))


def varied(found: Sequence[Tried], axis: str) -> list[str]:
    """What was searched over: settings with more than one value, but for those that make another task."""
    names = sorted({name for one in found for name in one.setting} - {axis, *AXES})
    return [name for name in names if len({one.setting.get(name) for one in found}) > 1]


def table_text(records: Sequence[Record], verdict: Verdict) -> str:
    """A study for the terminal: its losses as a table, or the best of them where they were drawn off any grid."""
    if is_scattered(records, verdict.axis, verdict.hp):
        return "\n".join([*_search_lines(tried(records, verdict.axis), verdict.axis), *_verdict_lines(verdict)])
    others = held(records, verdict.axis, verdict.hp)
    where = "".join(f" at {name} {brief_value(value)}" for name, value in others.items())
    table = settled_table(records, verdict.axis, verdict.hp)
    return cells_text(table, verdict, where=where, seeds="seeds (search.seeds=2)")


def cells_text(table: Table, verdict: Verdict, *, metric: str = METRIC, where: str = "", seeds: str = "seeds") -> str:
    """The metric as aligned plain text: a row for each value of the setting, a column for each axis value.

    `*` marks the best of a column; a setting that diverged shows the first step at which a replicate did. `where` says
    at which other settings the table stands; `seeds` how more of them are asked for.
    """
    if not table:
        return f"no trial has settled\nverdict  {verdict.verdict}: {verdict.why}"
    for short in (False, True):
        header = [verdict.hp, *(f"{axis:g} " if short else f"{verdict.axis} {axis:g}" for axis in table)]
        rows = [[shown(hp), *_texts(table, verdict, hp, short)] for hp in hp_values(table)]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= TERMINAL:
            break
    columns = f", by {verdict.axis}" if short else ""
    lines = [*textwrap.wrap(f"{metric}{where}{columns}{mean_of(table)}; * best of its column", TERMINAL), ""]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines += ["", *_optimum_lines(verdict)]
    if any(optimum.fitted is None for optimum in verdict.optimum.values()):
        lines.append("fitted: empty where no curve surely has its minimum among the points")
    lines += [*edge_lines(verdict), *_noise_lines(table, verdict, metric, seeds), *_verdict_lines(verdict)]
    return "\n".join(lines)


def _noise_lines(table: Table, verdict: Verdict, metric: str, seeds: str) -> list[str]:
    """Without noise there is no interval: then what would tell it."""
    if finite(verdict.noise):
        told = f"one trial's {metric} varies by {percent(verdict.noise)} about the curves"
    elif mean_of(table):
        told = f"these points do not tell it, hence no intervals; add values of {verdict.hp}"
    else:
        told = f"one seed does not tell it, hence no intervals; add {seeds}"
    return _wrapped(f"noise: {told}")


def _verdict_lines(verdict: Verdict) -> list[str]:
    return _wrapped(f"verdict: {verdict.verdict}: {verdict.why}")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, TERMINAL, subsequent_indent="  ")


def _search_lines(found: Sequence[Tried], axis: str) -> list[str]:
    """The best of the settings that were drawn, a line each; those of a grid have a table."""
    finished = [one for one in found if one.metric is not None]
    where = f" at {axis} {found[0].setting[axis]}" if axis in found[0].setting else ""
    lines = [f"{METRIC}, the best of {len(found)} settings{where}; {len(found) - len(finished)} have none", ""]
    for one in finished[:BEST_SHOWN]:
        settings = " ".join(f"{name}={brief_value(value)}" for name, value in one.setting.items() if name != axis)
        told = textwrap.wrap(settings, TERMINAL - 12, break_on_hyphens=False)
        lines += [f"{one.metric:<12.4g}{told[0]}", *(" " * 12 + line for line in told[1:])]
    return [*lines, ""]


def brief_value(value: float | int | str) -> str:
    """A setting's value for reading; in full it stands in the CSV."""
    text = value if isinstance(value, str) else shown(value)
    return text if isinstance(value, str) or len(text) <= 8 else f"{value:.4g}"


def _optimum_lines(verdict: Verdict) -> list[str]:
    """The optimum of each axis value as a table; columns that say the least go where the terminal is too narrow."""
    header, *rows = optimum_rows(verdict)
    for dropped in ((), ("grid",), ("grid", "stable")):
        kept = [index for index, name in enumerate(header) if name not in dropped]
        widths = [max(len(row[index]) for row in (header, *rows)) for index in kept]
        if sum(widths) + 2 * (len(widths) - 1) <= TERMINAL:
            break
    return [
        "  ".join(row[index].ljust(width) for index, width in zip(kept, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def optimum_rows(verdict: Verdict) -> list[list[str]]:
    """A header, and for each axis value its optimum with interval and what it costs the largest, as text."""
    regrets = {regret.from_: regret for regret in verdict.regret}
    largest = max(verdict.optimum, default=0.0)
    fitted = with_interval("fitted", (optimum.high for optimum in verdict.optimum.values()))
    regret = with_interval(f"regret at {largest:g}", (found.high for found in verdict.regret))
    rows = [[verdict.axis, "grid", "choice", fitted, "stable", regret]]
    for axis, optimum in verdict.optimum.items():
        grid = "none finite" if optimum.grid is None else brief_value(optimum.grid)
        choice = "" if optimum.choice is None else brief_value(optimum.choice)
        fitted = "" if optimum.fitted is None else hp_text(optimum.fitted, log2_hp=verdict.log2_hp)
        if finite(optimum.low) and finite(optimum.high):
            ends = (hp_text(end, log2_hp=verdict.log2_hp) for end in (optimum.low, optimum.high))
            fitted += f" ({' to '.join(ends)})"
        stable = "none" if optimum.stable is None else brief_value(optimum.stable)
        rows.append([f"{axis:g}", grid, choice, fitted, stable, regret_text(regrets.get(axis))])
    return rows


def with_interval(name: str, highs: Iterable[float | None]) -> str:
    """A heading that promises 95 % where at least one value has an interval."""
    return f"{name}, 95 %" if any(map(finite, highs)) else name


def regret_text(regret: Regret | None) -> str:
    """As the verdict reads it: on the smoothed curve where there is one, else as measured."""
    if regret is None:
        return ""
    value = regret.relative if regret.estimate is None else regret.estimate
    if value is None:
        return "diverges"
    interval = f" (to {percent(regret.high)})" if finite(regret.high) else ""
    return percent(value) + interval


def edge_lines(verdict: Verdict) -> list[str]:
    """Drift, from where on the optimum transfers, and how near it lies to the largest stable value: a line each."""
    lines = []
    if (drift := drift_text(verdict)) is not None:
        lines.append(f"drift: {drift}")
    if verdict.from_ is not None:
        lines.append(f"from: {verdict.axis} {verdict.from_:g} on")
    if verdict.optimum and (edge := edge_text(verdict.hp, verdict.optimum[max(verdict.optimum)])):
        lines.append(f"edge: {edge}")
    return lines


def edge_text(hp: str, optimum: Optimum) -> str:
    """How near the optimum is to the largest stable value; empty where nothing diverged above it."""
    best = place_of_best(optimum)
    if best is None or optimum.stable is None or optimum.diverges is None:
        return ""
    is_ratio = min(best, optimum.stable) > 0
    up = math.log2(optimum.stable / best) if is_ratio else optimum.stable - best
    if up < 0.05:
        return f"the optimum is the largest stable {hp}, {brief_value(optimum.stable)}"
    steps = f"{up:.1f} doublings" if is_ratio else f"{up:.1f}"
    return f"the optimum is {steps} below the largest stable {hp}, {brief_value(optimum.stable)}"


def place_of_best(optimum: Optimum) -> float | None:
    """The vertex where there is one, else what muxfer takes."""
    return next((x for x in (optimum.fitted, optimum.choice, optimum.grid) if x is not None), None)


def _texts(table: Table, verdict: Verdict, hp: float, short: bool) -> Iterator[str]:
    for axis, row in table.items():
        best = grid_optimum(verdict, axis)
        yield cell_text(row.get(hp), num_decimals(table), short) + ("*" if best == hp else " ")


def csv_text(records: Iterable[Record]) -> str:
    """One row a proxy trial: its settings, replicate, outcome, metric (empty: it has none) and last step."""
    proxies = ordered(record for record in records if record.kind == "proxy")
    names = sorted({name for record in proxies for name in record.setting})
    rows = [
        [*(r.setting.get(name, "") for name in names), r.replicate, str(r.outcome), r.metric, r.step] for r in proxies
    ]
    return rows_csv([*names, "replicate", "outcome", "metric", "step"], rows)


def rows_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers in full, so that they come back the same; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
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


def hp_text(value: float, *, log2_hp: bool = True) -> str:
    """A setting's value that lies between those of the grid."""
    return f"2^{math.log2(value):.2f}" if log2_hp and 0 < value < 1 else f"{value:.3g}"


def drift_text(verdict: Verdict) -> str | None:
    """With its interval; None where no drift can be told."""
    value, low, high = (verdict.drift_per_doubling.get(name) for name in ("value", "low", "high"))
    if value is None:
        return None
    interval = f" (95 %: {low:+.2f} to {high:+.2f})" if finite(low) and finite(high) else ""
    return f"{value:+.2f}{interval} in {drift_unit(verdict)}"


def drift_unit(verdict: Verdict) -> str:
    unit = f"log2 of {verdict.hp}" if verdict.log2_hp else verdict.hp
    return f"{unit} per doubling of {verdict.axis}"


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def whole_powers(low: float, high: float, *, most: int = 9) -> list[int]:
    """The whole numbers between two exponents, evenly thinned to at most so many."""
    first, last = math.ceil(low), math.floor(high)
    return list(range(first, last + 1, math.ceil((last - first + 1) / most) or 1))


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
