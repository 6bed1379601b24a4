"""What the trials of a study gave, as plain text: a table for the terminal, a CSV that gives every trial back.

How a number, an outcome or a drift is written is decided here, once, for the figures and the pages as well.
"""

import textwrap
from collections.abc import Iterator, Sequence

from muxfer.analysis.cells import (
    SettingResult,
    Table,
    finite,
    grid_optimum,
    held_settings,
    hp_values,
    percent,
    seeds_text,
    settings_at_largest,
    settled_table,
    shown,
)
from muxfer.analysis.scattered import is_scattered
from muxfer.report.format import (
    METRIC,
    TERMINAL,
    brief_value,
    cell_text,
    drift_text,
    edge_text,
    hp_text,
    num_decimals,
    regret_text,
    with_interval,
)
from muxfer.trial import Record, Verdict

BEST_SHOWN = 8


def table_text(records: Sequence[Record], verdict: Verdict) -> str:
    """A study for the terminal: its losses as a table, or the best of them where they were drawn off any grid."""
    if is_scattered(records, verdict.axis, verdict.hp):
        return "\n".join(
            [*_search_lines(settings_at_largest(records, verdict.axis), verdict.axis), *_verdict_lines(verdict)]
        )
    others = held_settings(records, verdict.axis, verdict.hp)
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
    lines = [*textwrap.wrap(f"{metric}{where}{columns}{seeds_text(table)}; * best of its column", TERMINAL), ""]
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
    elif seeds_text(table):
        told = f"these points do not tell it, hence no intervals; add values of {verdict.hp}"
    else:
        told = f"one seed does not tell it, hence no intervals; add {seeds}"
    return _wrapped(f"noise: {told}")


def _verdict_lines(verdict: Verdict) -> list[str]:
    return _wrapped(f"verdict: {verdict.verdict}: {verdict.why}")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, TERMINAL, subsequent_indent="  ")


def _search_lines(found: Sequence[SettingResult], axis: str) -> list[str]:
    """The best of the settings that were drawn, a line each; those of a grid have a table."""
    finished = [one for one in found if one.metric is not None]
    where = f" at {axis} {found[0].setting[axis]}" if axis in found[0].setting else ""
    lines = [f"{METRIC}, the best of {len(found)} settings{where}; {len(found) - len(finished)} have none", ""]
    for one in finished[:BEST_SHOWN]:
        settings = " ".join(f"{name}={brief_value(value)}" for name, value in one.setting.items() if name != axis)
        told = textwrap.wrap(settings, TERMINAL - 12, break_on_hyphens=False)
        lines += [f"{one.metric:<12.4g}{told[0]}", *(" " * 12 + line for line in told[1:])]
    return [*lines, ""]


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


def _texts(table: Table, verdict: Verdict, hp: float, short: bool) -> Iterator[str]:
    for axis, row in table.items():
        best = grid_optimum(verdict, axis)
        yield cell_text(row.get(hp), num_decimals(table), short) + ("*" if best == hp else " ")
