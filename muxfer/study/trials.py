"""What a study needs to run: its identity, its trials by content key, and the order in which they go. Pure: the same
configuration gives the same study and the same keys in every folder and on every host.
"""

from collections.abc import Iterable
from typing import Any

from muxfer.config.parse import setting_value
from muxfer.config.settings import key_content, place_of, with_setting
from muxfer.config.study import Config, StudyKind
from muxfer.config.task import Task, to_plain
from muxfer.errors import BadInput
from muxfer.study.cost import estimated_flops
from muxfer.study.search import grid, num_settings
from muxfer.trial import NUMERICS_VERSION, Record, Setting, Study, Trial, content_hash

MAX_TRIALS = 10_000


def study_of(name: str, config: Config, *, fingerprint: str) -> Study:
    """The study of a sweep. Its identity leaves out what it varies, grids, seeds, budget, target and compute."""
    content = key_content(to_plain(config.task))
    varied = sorted({*config.search.grids, *config.search.spaces})
    for setting in varied:
        if (place := place_of(setting)) is not None:
            content[place[0]].pop(place[1], None)  # keys of ADDED_LATER may be absent
    search: dict[str, Any] = {"axis": config.search.axis, "hp": config.search.hp, "varied": varied}
    if config.search.kind is not StudyKind.GRID:
        search["sampler"] = config.search.sampler
    identity = {**content, "search": search, "data_fingerprint": fingerprint, "numerics": NUMERICS_VERSION}
    return Study(name=name, key=content_hash({"name": name, "identity": identity}), identity=identity)


def make_trial(
    task: Task,
    setting: Setting,
    *,
    replicate: int,
    fingerprint: str,
    kind: str = "proxy",
    numerics: int = NUMERICS_VERSION,
) -> Trial:
    """A trial whose key is the content hash of everything that decides its numbers: equal keys train bit for bit alike
    on a CPU. A target differs from an equal proxy: it has a lineage. `numerics` is the version that trained the trial.
    """
    plain = to_plain(task)
    hashed = {"task": key_content(plain), "replicate": replicate, "data_fingerprint": fingerprint, "numerics": numerics}
    key = content_hash(hashed if kind == "proxy" else {**hashed, "kind": kind})
    content: dict[str, Any] = {"replicate": replicate, "fingerprint": fingerprint, "kind": kind}
    return Trial(key=key, setting=dict(setting), task=plain, cost_flops=estimated_flops(task), **content)


def validate_search(config: Config) -> None:
    """Raise BadInput for a search that is too large, or whose spaces hold values that no task can have."""
    search = config.search
    if (count := search.seeds * num_settings(search)) > MAX_TRIALS:
        raise BadInput(f"the search has {count} trials: expected at most {MAX_TRIALS}; shorten a list under search")
    for name, space in search.spaces.items():
        for bound in space.bounds:
            with_setting(config.task, {name: setting_value(name, 2.0**bound if space.log2 else bound)})
    if search.finalists and search.finalist_steps == config.training.steps:
        steps = search.finalist_steps
        raise BadInput(f"search.finalist_steps {steps} is training.steps, which every setting has: give more")


def grid_trials(config: Config, *, fingerprint: str) -> list[Trial]:
    """Every trial of the grid, each setting with each replicate. BadInput where no model can have a value."""
    validate_search(config)
    return trials_of(grid(config.search), config, fingerprint=fingerprint)


def trials_of(
    settings: Iterable[Setting], config: Config, *, fingerprint: str, numerics: int = NUMERICS_VERSION
) -> list[Trial]:
    """The trials of these settings, each with each replicate."""
    trials = []
    for setting in settings:
        task = with_setting(config.task, setting)
        for replicate in range(config.search.seeds):
            trials.append(make_trial(task, setting, replicate=replicate, fingerprint=fingerprint, numerics=numerics))
    return trials


def remaining(trials: Iterable[Trial], records: Iterable[Record]) -> list[Trial]:
    """The trials without a settled record, longest first, so that the slots end together."""
    settled = {record.key for record in records if record.outcome.settled}
    todo = [trial for trial in trials if trial.key not in settled]
    return sorted(todo, key=lambda trial: (-trial.cost_flops, trial.replicate, sorted(trial.setting.items())))
