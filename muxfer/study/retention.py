"""Which checkpoints stay on the disk, within a budget that is compared with the plan before anything starts.

A running trial keeps its last two: its worker deletes older ones between steps. A settled trial keeps its newest. Where
that exceeds the budget, only the best settled trials keep theirs, and the best of all always does. A failed trial keeps
all, because it can continue. The driver deletes when a trial ends, never while it trains. A sweep is refused whose
budget does not hold the checkpoints of the running trials and the best one.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from muxfer.config.models import Declared, Model
from muxfer.config.parse import parse_part
from muxfer.config.study import Config
from muxfer.errors import BadInput
from muxfer.study.cost import estimated_macs, most_parameters, parts
from muxfer.study.search import grid, num_settings
from muxfer.training.attempt_folders import refuse_links, stored_bytes, subfolders
from muxfer.trial import Record, Trial, content_hash

SPARE_BYTES = 10**9  # space on the disk that is left free where no budget is given
FOR_RUNNING = 3  # checkpoints of a running trial: the last two, and the one that is being written
BYTES_A_PARAMETER = 4 * 4  # float32, of the weights, the averaged weights and the two moments of Adam


@dataclass(frozen=True, kw_only=True)
class Held:
    """The checkpoint of a trial that has ended. `written` orders equals. A `target` always keeps its checkpoint."""

    key: str
    size: int
    metric: float | None
    written: int
    target: bool = False


def to_delete(held: Iterable[Held], *, room: int) -> list[Held]:
    """The checkpoints to delete so that the rest fits into `room` bytes: all from the first that does not fit. The
    order is targets, then by metric, then the newest; diverged trials come last. The first one always stays.
    """
    ranked = sorted(held, key=lambda h: (not h.target, h.metric is None, h.metric or 0.0, -h.written, h.key))
    total = 0
    for place, one in enumerate(ranked):
        total += one.size
        if place and total > room and not one.target:
            return ranked[place:]
    return []


class Retention:
    """Applies the rules below `folder`. Only the lease's holder uses it. `running_bytes` are for trials that train."""

    def __init__(self, folder: Path, *, budget_bytes: int, running_bytes: int) -> None:
        self._folder = folder
        self._room = budget_bytes - running_bytes
        self._epoch = 0
        self._ended: dict[str, Held] = {}
        self._waiting: dict[str, int] = {}

    def begin(self, records: Iterable[Record], *, epoch: int) -> None:
        """Apply the rules to what earlier drivers left. `epoch` is our lease's: folders of a later one are kept."""
        self._epoch = epoch
        by_key = {record.key: record for record in records}
        for path in subfolders(self._folder):
            if (record := by_key.get(path.name)) is not None and record.outcome.settled:
                self._take(record)
            else:
                self._waiting[path.name] = stored_bytes(path)
        self._fit(running=())

    def settle(self, record: Record, *, running: Collection[str]) -> None:
        """A trial has ended; those with the keys `running` have not."""
        self._take(record)
        self._fit(running)

    def _take(self, record: Record) -> None:
        from muxfer.training import checkpoint

        path = self._folder / record.key
        if not record.outcome.settled:  # it may run again, from an older checkpoint if its last is damaged
            self._waiting[record.key] = stored_bytes(path)
            return
        size = checkpoint.keep_newest(path, epoch=self._epoch)
        self._waiting.pop(record.key, None)
        if not size:
            return
        with contextlib.suppress(OSError):
            written, target = path.stat().st_mtime_ns, record.kind == "target"
            held = Held(key=record.key, size=size, metric=record.metric, written=written, target=target)
            self._ended[record.key] = held

    def _fit(self, running: Collection[str]) -> None:
        from muxfer.training import checkpoint

        waiting = sum(size for key, size in self._waiting.items() if key not in running)
        for held in to_delete(self._ended.values(), room=self._room - waiting):
            remaining = checkpoint.delete_all(self._folder / held.key, epoch=self._epoch)
            if remaining:  # a later driver's, or the disk refused
                self._ended[held.key] = replace(held, size=remaining)
            else:
                del self._ended[held.key]


def plan_retention(
    config: Config, trials: Sequence[Trial], *, folder: Path, print_line: Callable[[str], None]
) -> Retention:
    """The retention below `folder`. BadInput where the budget is too small for the running trials and the best one."""
    refuse_links(folder)
    count = len(trials)
    if config.search.num_settings is not None:
        count = max(count, config.search.seeds * num_settings(config.search))
    models = _models(config, trials)
    slots = min(config.compute.slots or os.cpu_count() or 1, count)
    budget, where = _budget(config, folder)
    each = max(math.inf if isinstance(model, Declared) else most_parameters(model) for model in models)
    each *= BYTES_A_PARAMETER
    if (FOR_RUNNING * slots + count) * each > budget:  # the exact size may matter: it takes torch
        each = BYTES_A_PARAMETER * _num_parameters(max(models, key=estimated_macs))
        slots = min(_slots(config), count)
    running = int(FOR_RUNNING * slots * each)
    if running + each > budget:
        raise BadInput(
            f"checkpoints need {_text_of_size(running + each)} at least, {slots} trials at a time with {FOR_RUNNING} of"
            f" {_text_of_size(each)} and the best one's: {where}; free some space, give another disk with"
            " output_dir=FOLDER, a larger checkpoints.budget_gb=GB, or fewer trials at a time with compute.slots=NUMBER"
        )
    if running + count * each > budget:
        num_kept = int((budget - running) // each)
        size = _text_of_size(each)
        print_line(f"of {count} trials the best {num_kept} keep a checkpoint: {where}, and each takes {size}")
    return Retention(folder, budget_bytes=budget, running_bytes=running)


def _models(config: Config, trials: Sequence[Trial]) -> list[Model]:
    """The models that the search trains; where a sampler draws sizes, the largest."""
    plain = {content_hash(trial.task["model"]): trial.task for trial in trials}
    models = [parse_part("model", task) for task in plain.values()]
    if config.search.spaces:
        models += [part.task.model for part in parts(config.task, config.search, grid(config.search))]
    return models


def _num_parameters(model: Model) -> int:
    import torch

    from muxfer.models.families import family_of

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in family_of(model).build(model.width).parameters())


def _slots(config: Config) -> int:
    """The slots that an executor will have on this machine. The slots of a joined cluster are unknown: 1."""
    if config.compute.slots is not None:
        return config.compute.slots
    if config.compute.address is not None:
        return 1
    import torch

    gpus = torch.cuda.device_count() if config.compute.device != "cpu" else 0
    return gpus or os.cpu_count() or 1


def _budget(config: Config, folder: Path) -> tuple[int, str]:
    """Bytes that the study's checkpoints may take, present ones included, and a text that explains the number."""
    if config.checkpoints.budget_gb is not None:
        return int(config.checkpoints.budget_gb * 1e9), f"checkpoints.budget_gb is {config.checkpoints.budget_gb:g}"
    disk = next(path for path in (folder, *folder.parents) if path.is_dir())
    free, there = shutil.disk_usage(disk).free, stored_bytes(folder)
    where = f"the disk of {folder} has {_text_of_size(free)} free, of which {_text_of_size(SPARE_BYTES)} is left alone"
    return free + there - SPARE_BYTES, where


def _text_of_size(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
