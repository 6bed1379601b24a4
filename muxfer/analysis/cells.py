"""A study's records as a table: what each value of the setting gave at each axis value, over its replicates.

Records of a target, and trials that failed, say nothing here. A trial that diverged says that the optimum lies to its
side: it closes a bracket, it is not dropped.
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


def settled_table(records: Sequence[Record], axis: str, hp: str) -> Table:
    """The study as a table: a cell for each axis value and each value of the setting, averaged over replicates."""
    groups: dict[tuple[float, float], list[Record]] = {}
    for record in best_slice(records, axis, hp):
        groups.setdefault((setting_number(record, axis), setting_number(record, hp)), []).append(record)
    table: dict[float, dict[float, Cell]] = {}
    for (axis_value, hp_value), group in sorted(groups.items()):
        table.setdefault(axis_value, {})[hp_value] = cell_of(axis_value, hp_value, group)
    return table


def best_slice(records: Sequence[Record], axis: str, hp: str) -> list[Record]:
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
    largest = max(setting_number(record, axis) for record in proxies)

    def lowest(slice_: list[Record]) -> float:
        at_largest = [record for record in slice_ if setting_number(record, axis) == largest]
        means = [cell.mean for row in settled_table(at_largest, axis, hp).values() for cell in row.values()]
        return min((mean for mean in means if mean is not None), default=math.inf)

    return min(others.values(), key=lowest)


def held_settings(records: Sequence[Record], axis: str, hp: str) -> Setting:
    """Where `at_best_others` holds what else the study varies; empty where it varies nothing else."""
    kept = best_slice(records, axis, hp)
    names = {name for record in records if record.kind == "proxy" for name in record.setting} - {axis, hp}
    searched_settings = sorted(
        name for name in names if len({repr(record.setting.get(name)) for record in records}) > 1
    )
    return {name: kept[0].setting[name] for name in searched_settings if kept and name in kept[0].setting}


def shown(value: float) -> str:
    """A setting's value as people write it: 2^-7 or 2^-6.5 for powers of two below one, 0.003, 64."""
    if 0 < value < 1 and math.isclose(halves := 2 * math.log2(value), round(halves), abs_tol=1e-9):
        return f"2^{round(halves) / 2:g}"
    return f"{value:.10g}"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def setting_number(record: Record, name: str) -> float:
    value = record.setting.get(name)
    if isinstance(value, str) or value is None:
        known = ", ".join(sorted(record.setting)) or "no setting"
        raise BadInput(f"trial {record.key} has {name} {value!r}: expected a number; it was given {known}")
    return float(value)


def cell_of(axis: float, hp: float, group: Sequence[Record]) -> Cell:
    outcomes = {record.outcome for record in group}
    outcome = next(o for o in (Outcome.DIVERGED, Outcome.PRUNED, Outcome.FINISHED, Outcome.FAILED) if o in outcomes)
    metrics = {r.replicate: r.metric for r in sorted(group, key=lambda r: r.replicate) if r.metric is not None}
    mean = math.fsum(metrics.values()) / len(metrics) if outcome is Outcome.FINISHED else None
    steps = [record.step for record in group if record.outcome is outcome]
    step = min(steps) if outcome is Outcome.DIVERGED else max(steps)
    return Cell(axis=axis, hp=hp, outcome=outcome, metrics=metrics, mean=mean, step=step)


def best_cell(row: Mapping[float, Cell]) -> Cell | None:
    """The lowest mean; of equals the smaller value of the setting, for it is the one farther from divergence."""
    finished = [cell for cell in row.values() if cell.mean is not None]
    return min(finished, key=lambda cell: (cell.mean, cell.hp), default=None)


def bracket(row: Mapping[float, Cell], best: Cell) -> tuple[Cell | None, Cell | None]:
    """The nearest cells below and above the optimum that settled; None where the grid ends."""
    settled = [cell for cell in row.values() if cell.outcome in CLOSES]
    below = max((cell for cell in settled if cell.hp < best.hp), key=lambda cell: cell.hp, default=None)
    above = min((cell for cell in settled if cell.hp > best.hp), key=lambda cell: cell.hp, default=None)
    return below, above


@dataclass(frozen=True, kw_only=True)
class SettingResult:
    """One setting at the largest axis value: its mean metric, None if any of its replicates has none."""

    setting: Setting
    metric: float | None


def settings_at_largest(records: Sequence[Record], axis: str) -> list[SettingResult]:
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
        found.append(SettingResult(setting=dict(setting), metric=mean))
    return sorted(found, key=lambda one: (one.metric is None, one.metric or 0.0))


def searched_settings(found: Sequence[SettingResult], axis: str) -> list[str]:
    """What was searched over: settings with more than one value, but for those that make another task."""
    names = sorted({name for one in found for name in one.setting} - {axis, *AXES})
    return [name for name in names if len({one.setting.get(name) for one in found}) > 1]


def best_value(optimum: Optimum) -> float | None:
    """The vertex where there is one, else what muxfer takes."""
    return next((x for x in (optimum.fitted, optimum.choice, optimum.grid) if x is not None), None)


def ordered(records: Iterable[Record]) -> list[Record]:
    """As every list of trials shows them: proxies first, by setting, then by replicate."""

    def place(record: Record) -> list[tuple[str, float, str]]:
        items = sorted(record.setting.items())
        return [(name, 0.0, value) if isinstance(value, str) else (name, float(value), "") for name, value in items]

    return sorted(records, key=lambda record: (record.kind != "proxy", place(record), record.replicate, record.key))


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def seeds_text(table: Table) -> str:
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


def is_log2(table: Table) -> bool:
    """Whether the setting is drawn over its log2: wherever it has one. A column that is log2 already is negative."""
    hps = hp_values(table)
    return bool(hps) and hps[0] > 0


def hp_values(table: Table) -> list[float]:
    return sorted({cell.hp for cell in all_cells(table)})


def all_cells(table: Table) -> list[Cell]:
    return [cell for row in table.values() for cell in row.values()]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best setting at the largest axis value: its mean metric, and its records, the best replicate first."""

    setting: Setting
    metric: float
    records: tuple[Record, ...]
