"""The settings of a grid and of a finished search, and what samplers share: which settings a study runs next."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from muxfer.analysis.scattered import fit_surface, place_in, rows_by_axis
from muxfer.config.parse import setting_value
from muxfer.config.settings import SETTINGS
from muxfer.config.study import Search, Space
from muxfer.trial import Record, Setting

DIGITS = 6  # significant digits of a drawn value: short to read, and the same after rounding on another host

Key = tuple[tuple[str, float | int | str], ...]


def grid(search: Search) -> list[Setting]:
    """Every combination of the grids' values."""
    names = list(search.grids)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*search.grids.values())]


def num_settings(search: Search) -> int:
    """The number of settings of a whole search, finalists included. An isoFLOP study may have fewer."""
    per_combination = 1 if search.num_settings is None else search.num_settings
    return math.prod(len(values) for values in search.grids.values()) * per_combination + search.finalists


def drawn_setting(search: Search, held: Setting, drawn: Mapping[str, Any]) -> Setting:
    """One combination of the grids with the values that a sampler drew from the spaces, in the order of SETTINGS."""
    setting = {**held, **{name: _readable(name, search.spaces[name], value) for name, value in drawn.items()}}
    return {name: setting[name] for name in SETTINGS if name in setting}


def key_of(setting: Setting) -> Key:
    return tuple(sorted(setting.items()))


def values_of(records: Sequence[Record], seeds: int) -> dict[Key, float]:
    """The mean metric of each setting whose replicates are all settled. Infinite where one diverged: it ranks last."""
    metrics: dict[Key, dict[int, float]] = {}
    for record in records:
        if record.kind == "proxy" and record.outcome.settled and record.replicate < seeds:
            metric = math.inf if record.metric is None else record.metric
            metrics.setdefault(key_of(record.setting), {})[record.replicate] = metric
    return {key: math.fsum(found.values()) / seeds for key, found in metrics.items() if len(found) == seeds}


def finalists(search: Search, settings: Sequence[Setting], records: Sequence[Record]) -> list[Setting]:
    """The best settings at the axis' largest value, once all are settled, to train longer. Equals: the earlier one."""
    values = values_of(records, search.seeds)
    if not search.finalists or not all(key_of(setting) in values for setting in settings):
        return []
    largest = max(search.grids[search.axis])
    finite = [s for s in settings if s[search.axis] == largest and math.isfinite(values[key_of(s)])]
    row = rows_by_axis(searched(search, records), search.axis).get(largest, {})
    if surface := fit_surface(row):  # smoothed, so that lucky runs do not decide
        smoothed = dict(zip(surface.places, surface.mean.tolist(), strict=True))
        values |= {key_of(s): smoothed[place_in(s, search.axis)] for s in finite}
    ranked = sorted(finite, key=lambda s: values[key_of(s)])
    assert search.finalist_steps is not None
    return [{**setting, "steps": search.finalist_steps} for setting in ranked[: search.finalists]]


def is_finalist(search: Search, record: Record) -> bool:
    """Whether this trial is a finalist's longer one. A search with finalists never varies the steps."""
    return search.finalists > 0 and record.setting.get("steps") == search.finalist_steps


def searched(search: Search, records: Sequence[Record]) -> list[Record]:
    """The records without those of finalists, which trained longer than the rest and do not fit its curves."""
    return [record for record in records if not is_finalist(search, record)]


def _readable(name: str, space: Space, drawn: float) -> Any:
    """The value of a drawn number: 2 to its power under log2, inside the bounds, and of the setting's type."""
    if space.kind in ("uniform", "log_uniform"):
        low, high = (2.0**bound if space.log2 else bound for bound in space.bounds)
        value = float(f"{2.0**drawn if space.log2 else drawn:.{DIGITS}g}")
        return setting_value(name, min(max(value, low), high))
    return setting_value(name, 2.0**drawn if space.log2 else float(drawn))
