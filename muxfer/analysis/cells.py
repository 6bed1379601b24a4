"""A study's records as a table: a cell for each value of the setting at each axis value, over its replicates.

Records of a target are left out. A failed trial has no result, so its cell is not settled. A diverged trial has one:
the optimum lies on the other side of it, so its cell closes a bracket.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from muxfer.config.settings import AXES
from muxfer.errors import BadInput
from muxfer.trial import Optimum, Outcome, Record, Setting, Verdict

TOLERATED_REGRET = 0.02
"""An optimum transfers while the largest task loses at most this share of its best loss by using it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of the setting at one axis value, over its replicates.

    `outcome` is diverged if any replicate diverged, else finished if any finished, else failed. `mean` is None unless
    finished. `step` is where the first replicate diverged, else the last step trained.
    """

    axis: float
    hp: float
    outcome: Outcome
    metrics: Mapping[int, float]
    """By replicate."""
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

    @classmethod
    def of(cls, records: Iterable[Record], *, metric: float) -> "Best":
        """From the records of one setting, of which at least one has finished."""
        finished = [record for record in records if record.metric is not None]
        finished.sort(key=lambda record: (record.metric, record.replicate))
        return cls(setting=dict(finished[0].setting), metric=metric, records=tuple(finished))


def settled_table(records: Sequence[Record], axis: str, hp: str) -> Table:
    """The study as a table. Where further settings vary, it is the table of `best_slice`.

    BadInput where a record lacks one of the two settings, or has text for it.
    """
    groups: dict[tuple[float, float], list[Record]] = {}
    for record in best_slice(records, axis, hp):
        groups.setdefault((setting_number(record, axis), setting_number(record, hp)), []).append(record)
    table: dict[float, dict[float, Cell]] = {}
    for (axis_value, hp_value), group in sorted(groups.items()):
        table.setdefault(axis_value, {})[hp_value] = cell_of(axis_value, hp_value, group)
    return table


def setting_number(record: Record, name: str) -> float:
    """The record's value of a setting. BadInput where it has none, or text."""
    value = record.setting.get(name)
    if isinstance(value, str) or value is None:
        known = ", ".join(sorted(record.setting)) or "no setting"
        raise BadInput(f"trial {record.key} has {name} {value!r}: expected a number; it was given {known}")
    return float(value)


def cell_of(axis: float, hp: float, group: Sequence[Record]) -> Cell:
    """The cell of these replicates."""
    outcomes = {record.outcome for record in group}
    outcome = next(o for o in (Outcome.DIVERGED, Outcome.FINISHED, Outcome.FAILED) if o in outcomes)
    metrics = {r.replicate: r.metric for r in sorted(group, key=lambda r: r.replicate) if r.metric is not None}
    mean = math.fsum(metrics.values()) / len(metrics) if outcome is Outcome.FINISHED else None
    steps = [record.step for record in group if record.outcome is outcome]
    step = min(steps) if outcome is Outcome.DIVERGED else max(steps)
    return Cell(axis=axis, hp=hp, outcome=outcome, metrics=metrics, mean=mean, step=step)


def best_slice(records: Sequence[Record], axis: str, hp: str) -> list[Record]:
    """The proxies among the records, with every third setting held where it is best at the largest axis value.

    A study that varies one setting along one axis comes back whole. One that varies more is cut to the slice through
    its best point: a curve over `hp` that mixes two batch sizes has no optimum of its own.
    """
    proxies = [record for record in records if record.kind == "proxy"]
    slices: dict[tuple[tuple[str, str], ...], list[Record]] = {}
    for record in proxies:
        others = tuple(sorted((k, repr(v)) for k, v in record.setting.items() if k not in (axis, hp)))
        slices.setdefault(others, []).append(record)
    if len(slices) < 2:
        return proxies
    largest = max(setting_number(record, axis) for record in proxies)

    def lowest_mean(one: list[Record]) -> float:
        at_largest = [record for record in one if setting_number(record, axis) == largest]
        means = best_losses(settled_table(at_largest, axis, hp)).values()
        return min((mean for mean in means if mean is not None), default=math.inf)

    return min(slices.values(), key=lowest_mean)


def held_settings(records: Sequence[Record], axis: str, hp: str) -> Setting:
    """The values at which `best_slice` holds the further settings. Empty where the study varies no others."""
    kept = best_slice(records, axis, hp)
    names = {name for record in records if record.kind == "proxy" for name in record.setting} - {axis, hp}
    varied = sorted(names & varied_names([record.setting for record in records]))
    return {name: kept[0].setting[name] for name in varied if kept and name in kept[0].setting}


def varied_names(settings: Sequence[Setting]) -> set[str]:
    """The names that do not have one value in all of these settings."""
    names = {name for setting in settings for name in setting}
    return {name for name in names if len({setting.get(name) for setting in settings}) > 1}


def best_cell(row: Mapping[float, Cell]) -> Cell | None:
    """The cell with the lowest mean. Of equal ones the smaller setting wins: it is farther from divergence."""
    finished = [cell for cell in row.values() if cell.mean is not None]
    return min(finished, key=lambda cell: (cell.mean, cell.hp), default=None)


def bracket(row: Mapping[float, Cell], best: Cell) -> tuple[Cell | None, Cell | None]:
    """The nearest settled cells below and above the optimum; None where the grid ends."""
    settled = [cell for cell in row.values() if cell.outcome.settled]
    below = max((cell for cell in settled if cell.hp < best.hp), key=lambda cell: cell.hp, default=None)
    above = min((cell for cell in settled if cell.hp > best.hp), key=lambda cell: cell.hp, default=None)
    return below, above


def relative_excess(metric: float, best: float) -> float | None:
    """The share by which a metric exceeds the best one. Where the best is exactly 0: 0 for an equal metric, or None."""
    if not best:
        return 0.0 if metric == best else None
    return (metric - best) / abs(best)


@dataclass(frozen=True, kw_only=True)
class SettingResult:
    """One setting at the largest axis value: its mean metric, None if any of its replicates has none."""

    setting: Setting
    metric: float | None


def settings_at_largest(records: Sequence[Record], axis: str) -> list[SettingResult]:
    """Every settled setting at the largest axis value, the best first, diverged ones last.

    Finalists are left out. They have one setting more than the others, the steps they were trained on for, so they
    cannot be compared.
    """
    proxies = [r for r in records if r.kind == "proxy" and r.outcome.settled]
    counts = Counter(frozenset(record.setting) for record in proxies)
    proxies = [r for r in proxies if counts[frozenset(r.setting)] == max(counts.values())]
    largest = max((float(r.setting.get(axis, 0)) for r in proxies), default=0.0)
    groups: dict[tuple[tuple[str, Any], ...], list[Record]] = {}
    for record in proxies:
        if float(record.setting.get(axis, 0)) == largest:
            groups.setdefault(tuple(sorted(record.setting.items())), []).append(record)
    results = []
    for setting, group in groups.items():
        metrics = [record.metric for record in group if record.metric is not None]
        mean = math.fsum(metrics) / len(metrics) if len(metrics) == len(group) else None
        results.append(SettingResult(setting=dict(setting), metric=mean))
    return sorted(results, key=lambda one: (one.metric is None, one.metric or 0.0))


def searched_settings(results: Sequence[SettingResult], axis: str) -> list[str]:
    """The names of the settings that a search varied, without those that change the task."""
    return sorted(varied_names([result.setting for result in results]) - {axis, *AXES})


def ordered(records: Iterable[Record]) -> list[Record]:
    """In the order of every list of trials: proxies first, by setting, then by replicate."""

    def place(record: Record) -> list[tuple[str, float, str]]:
        items = sorted(record.setting.items())
        return [(name, 0.0, value) if isinstance(value, str) else (name, float(value), "") for name, value in items]

    return sorted(records, key=lambda record: (record.kind != "proxy", place(record), record.replicate, record.key))


def best_value(optimum: Optimum) -> float | None:
    """The curve's minimum where there is one, else the choice, else the grid's optimum."""
    return next((x for x in (optimum.fitted, optimum.choice, optimum.grid) if x is not None), None)


def grid_optimum(verdict: Verdict, axis: float) -> float | None:
    """The grid's optimum at an axis value; None where the verdict has none."""
    return verdict.optimum[axis].grid if axis in verdict.optimum else None


def best_losses(table: Table) -> dict[float, float | None]:
    """The lowest mean loss at each axis value; None where nothing finished."""
    best = {axis: best_cell(row) for axis, row in table.items()}
    return {axis: None if cell is None else cell.mean for axis, cell in best.items()}


def all_cells(table: Table) -> list[Cell]:
    return [cell for row in table.values() for cell in row.values()]


def hp_values(table: Table) -> list[float]:
    """The setting's values at any axis value, ascending."""
    return sorted({cell.hp for cell in all_cells(table)})


def is_log2(table: Table) -> bool:
    """Whether the setting is drawn over its log2: all its values are above 0. A column that is log2 already is not."""
    hps = hp_values(table)
    return bool(hps) and hps[0] > 0


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def shown(value: float) -> str:
    """A setting's value as people write it: 2^-7 or 2^-6.5 for powers of two below one, 0.003, 64."""
    if 0 < value < 1 and math.isclose(halves := 2 * math.log2(value), round(halves), abs_tol=1e-9):
        return f"2^{round(halves) / 2:g}"
    return f"{value:.10g}"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def seeds_text(table: Table) -> str:
    """The number of seeds that a cell averages, as a suffix; empty for one seed."""
    num_seeds = max((len(cell.metrics) for cell in all_cells(table)), default=1)
    return f", mean of {num_seeds} seeds" if num_seeds > 1 else ""
