"""The results of a study as plain text for a terminal: losses, optima and the verdict."""

import textwrap
from collections.abc import Sequence
from typing import Any

from muxfer.analysis import cells
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
from muxfer.report.terminal import table_lines, table_width
from muxfer.trial import Record, Verdict

BEST_SHOWN = 8


def table_text(records: Sequence[Record], verdict: Verdict) -> str:
    """A study for the terminal: its losses as a table, or the best settings of a random search."""
    if is_scattered(records, verdict.axis, verdict.hp):
        results = cells.settings_at_largest(records, verdict.axis)
        return "\n".join([*_search_lines(results, verdict.axis), *_verdict_lines(verdict)])
    others = cells.held_settings(records, verdict.axis, verdict.hp)
    where = "".join(f" at {name} {brief_value(value)}" for name, value in others.items())
    table = cells.settled_table(records, verdict.axis, verdict.hp)
    return cells_text(table, verdict, where=where, seeds="seeds (search.seeds=2)")


def cells_text(
    table: cells.Table, verdict: Verdict, *, metric: str = METRIC, where: str = "", seeds: str = "seeds"
) -> str:
    """The metric as aligned plain text: a row for each value of the setting, a column for each axis value. `*` marks
    the best of a column. A setting that diverged shows the first step at which a replicate did. `where` names the other
    settings of the table. `seeds` says how to ask for more seeds.
    """
    if not table:
        return f"no trial has settled\nverdict  {verdict.verdict}: {verdict.why}"
    for short in (False, True):
        header = [verdict.hp, *(f"{axis:g} " if short else f"{verdict.axis} {axis:g}" for axis in table)]
        rows = [header, *([cells.shown(hp), *_cells(table, verdict, hp, short)] for hp in cells.hp_values(table))]
        if table_width(rows) <= TERMINAL:
            break
    columns = f", by {verdict.axis}" if short else ""
    title = f"{metric}{where}{columns}{cells.seeds_text(table)}; * best of its column"
    lines = [*textwrap.wrap(title, TERMINAL), "", *table_lines(rows), "", *_optimum_lines(verdict)]
    if any(optimum.fitted is None for optimum in verdict.optimum.values()):
        lines.append("fitted: empty where no curve surely has its minimum among the points")
    lines += [*edge_lines(verdict), *_noise_lines(table, verdict, metric, seeds), *_verdict_lines(verdict)]
    return "\n".join(lines)


def _noise_lines(table: cells.Table, verdict: Verdict, metric: str, seeds: str) -> list[str]:
    """How much a trial varies. Without that there is no interval, and the line says what is missing."""
    if cells.finite(verdict.noise):
        text = f"one trial's {metric} varies by {cells.percent(verdict.noise)} about the curves"
    elif cells.seeds_text(table):
        text = f"these points do not tell it, hence no intervals; add values of {verdict.hp}"
    else:
        text = f"one seed does not tell it, hence no intervals; add {seeds}"
    return _wrapped(f"noise: {text}")


def _verdict_lines(verdict: Verdict) -> list[str]:
    return _wrapped(f"verdict: {verdict.verdict}: {verdict.why}")


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, TERMINAL, subsequent_indent="  ")


def _search_lines(results: Sequence[cells.SettingResult], axis: str) -> list[str]:
    """The best settings of a random search, one after the other."""
    finished = [one for one in results if one.metric is not None]
    where = f" at {axis} {results[0].setting[axis]}" if axis in results[0].setting else ""
    num_without = len(results) - len(finished)
    lines = [f"{METRIC}, the best of {len(results)} settings{where}; {num_without} have none", ""]
    for one in finished[:BEST_SHOWN]:
        settings = " ".join(f"{name}={brief_value(value)}" for name, value in one.setting.items() if name != axis)
        metric = f"{one.metric:<12.4g}"
        indents: dict[str, Any] = {"initial_indent": metric, "subsequent_indent": " " * len(metric)}
        lines += textwrap.wrap(settings, TERMINAL, break_on_hyphens=False, **indents)
    return [*lines, ""]


def _optimum_lines(verdict: Verdict) -> list[str]:
    """The optimum of each axis value as a table. Where the terminal is too narrow, columns that say least go first."""
    header, *rows = optimum_rows(verdict)
    for dropped in ((), ("grid",), ("grid", "stable")):
        kept = [index for index, name in enumerate(header) if name not in dropped]
        narrow = [[row[index] for index in kept] for row in (header, *rows)]
        if table_width(narrow) <= TERMINAL:
            break
    return table_lines(narrow, align="l" * len(kept))


def optimum_rows(verdict: Verdict) -> list[list[str]]:
    """A header, and a row for each axis value: its optimum with interval, and its regret at the largest."""
    regrets = {regret.from_: regret for regret in verdict.regret}
    largest = max(verdict.optimum, default=0.0)
    fitted = with_interval("fitted", (end for best in verdict.optimum.values() for end in (best.low, best.high)))
    regret = with_interval(f"regret at {largest:g}", (regret.high for regret in verdict.regret))
    rows = [[verdict.axis, "grid", "choice", fitted, "stable", regret]]
    for axis, optimum in verdict.optimum.items():
        grid = "none finite" if optimum.grid is None else brief_value(optimum.grid)
        choice = "" if optimum.choice is None else brief_value(optimum.choice)
        fitted = "" if optimum.fitted is None else hp_text(optimum.fitted, log2_hp=verdict.log2_hp)
        if cells.finite(optimum.low) or cells.finite(optimum.high):
            low, high = (
                hp_text(x, log2_hp=verdict.log2_hp) if cells.finite(x) else None for x in (optimum.low, optimum.high)
            )
            fitted += f" ({low or 'open below'} to {high or 'open above'})"
        stable = "none" if optimum.stable is None else brief_value(optimum.stable)
        rows.append([f"{axis:g}", grid, choice, fitted, stable, regret_text(regrets.get(axis))])
    return rows


def edge_lines(verdict: Verdict) -> list[str]:
    """A line each for drift, the axis value from which the optimum transfers, and the distance to divergence."""
    lines = []
    if (drift := drift_text(verdict)) is not None:
        lines.append(f"drift: {drift}")
    if verdict.from_ is not None:
        lines.append(f"from: {verdict.axis} {verdict.from_:g} on")
    if verdict.optimum and (edge := edge_text(verdict.hp, verdict.optimum[max(verdict.optimum)])):
        lines.append(f"edge: {edge}")
    return lines


def _cells(table: cells.Table, verdict: Verdict, hp: float, short: bool) -> list[str]:
    decimals = num_decimals(table)
    marks = {axis: "*" if cells.grid_optimum(verdict, axis) == hp else " " for axis in table}
    return [cell_text(row.get(hp), decimals, short) + marks[axis] for axis, row in table.items()]
