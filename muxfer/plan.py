"""What a study needs to run: its identity, its trials by content key, and the order in which they go.

Pure: the same configuration gives the same study and the same keys in every folder and on every host.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from muxfer.config import SETTINGS, Config, Task, key_content, to_plain, with_setting
from muxfer.cost import estimated_flops
from muxfer.errors import BadInput
from muxfer.search import grid
from muxfer.trial import NUMERICS_VERSION, Record, Setting, Study, Trial, content_hash

MAX_TRIALS = 10_000


def study_of(name: str, config: Config, *, fingerprint: str) -> Study:
    """The study that a sweep and its overrides make: everything but grids, seeds, budget, target and compute.

    A key that the study varies is left out too: its value in the task has no effect.
    """
    content = key_content(to_plain(config.task))
    for setting in config.search.grids:
        group, key = SETTINGS[setting].split(".")
        content[group].pop(key)
    search = {"axis": config.search.axis, "hp": config.search.hp, "varied": sorted(config.search.grids)}
    identity = {**content, "search": search, "data_fingerprint": fingerprint, "numerics": NUMERICS_VERSION}
    return Study(name=name, key=content_hash({"name": name, "identity": identity}), identity=identity)


def trial_key(task: Mapping[str, Any], *, replicate: int, fingerprint: str, kind: str = "proxy") -> str:
    """Content hash of everything that decides a trial's numbers: equal keys train bit for bit alike on a CPU.

    A target's is its own: it has a lineage that an equal proxy has not.
    """
    content = {
        "task": key_content(task),
        "replicate": replicate,
        "data_fingerprint": fingerprint,
        "numerics": NUMERICS_VERSION,
    }
    return content_hash(content if kind == "proxy" else {**content, "kind": kind})


def make_trial(
    task: Task, setting: Mapping[str, Any], *, replicate: int, fingerprint: str, kind: str = "proxy"
) -> Trial:
    plain = to_plain(task)
    return Trial(
        key=trial_key(plain, replicate=replicate, fingerprint=fingerprint, kind=kind),
        setting=dict(setting),
        replicate=replicate,
        task=plain,
        kind=kind,
        cost_flops=estimated_flops(task),
        fingerprint=fingerprint,
    )


def grid_trials(config: Config, *, fingerprint: str) -> list[Trial]:
    """Every trial of the grid, each setting with each replicate. BadInput where a value fits no model."""
    count = config.search.seeds * math.prod(len(values) for values in config.search.grids.values())
    if count > MAX_TRIALS:
        raise BadInput(f"the grid has {count} trials: expected at most {MAX_TRIALS}; shorten a list under search")
    return trials_of(grid(config.search), config, fingerprint=fingerprint)


def trials_of(settings: Iterable[Setting], config: Config, *, fingerprint: str) -> list[Trial]:
    """The trials of these settings, each with each replicate."""
    trials = []
    for setting in settings:
        task = with_setting(config.task, setting)
        for replicate in range(config.search.seeds):
            trials.append(make_trial(task, setting, replicate=replicate, fingerprint=fingerprint))
    return trials


def remaining(trials: Iterable[Trial], records: Iterable[Record]) -> list[Trial]:
    """The trials that no settled record answers, longest first, so that the slots end together."""
    settled = {record.key for record in records if record.outcome.settled}
    todo = [trial for trial in trials if trial.key not in settled]
    return sorted(todo, key=lambda trial: (-trial.cost_flops, trial.replicate, sorted(trial.setting.items())))
