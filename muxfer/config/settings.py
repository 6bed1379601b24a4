"""The settings that a study may vary: the key of the task that each sets, and how each transfers to a target."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from muxfer.config.task import Task, validate

SETTINGS: dict[str, str | None] = {
    "width": "model.width",
    "depth": "model.depth",
    "batch_size": "training.batch_size",
    "steps": "training.steps",
    "base_lr": "optimizer.base_lr",
    "weight_decay": "optimizer.weight_decay",
    "grad_clip": "optimizer.grad_clip",
    "output_multiplier": "optimizer.output_multiplier",
    "warmup_steps": "training.warmup_steps",
    "repa_weight": "objective.repa_weight",
    "label_dropout": "training.label_dropout",
    "ema_fraction": "training.ema_fraction",
    "flops": None,
}
"""What a study can vary, by its name under `search`, and the key of the task that it sets. `flops` is the budget of an
isoFLOP study. It sets no key itself, but decides the steps."""
AXES = ("width", "depth", "batch_size", "steps", "flops")
"""The settings along which an optimum may transfer. All other settings may be tuned."""
TRANSFER = {
    "base_lr": "carried",
    "output_multiplier": "carried",
    "grad_clip": "carried",
    "repa_weight": "carried",
    "warmup_steps": "horizon",
    "ema_fraction": "horizon",
    "weight_decay": "regularization",
    "label_dropout": "regularization",
}
"""How a tuned setting reaches the target. `carried`: it transfers in width, so the target uses the same value.
`horizon`: it belongs to the length of training, so it is carried as a share of the steps. `regularization`: its best
value depends on how often the data is seen, so it is not carried where the data is seen more than once."""
NOT_IN_KEY = (
    "data.path",  # the data's fingerprint stands for it
    "training.checkpoint_every",
    "training.report_every",
    "evaluation.sampler",
    "evaluation.sampling_steps",
    "evaluation.guidance",
    "evaluation.samples_per_class",
)
"""The task's keys that stay out of a trial's key: they cannot change what is trained or how it is scored."""
ADDED_LATER = {
    "model.base_depth": None,
    "model.block": "adaln_zero",
    "model.frequency_shift": 0.0,
    "objective.repa_weight": 0.0,
}
"""Keys that were added after the first release, with the value that gives the earlier behaviour. At this value a key
stays out of a trial's key, so that the trials in older ledgers still match."""


def place_of(name: str) -> tuple[str, str] | None:
    """The group and key of the task that a setting sets, or None."""
    path = SETTINGS[name]
    return None if path is None else (path.split(".")[0], path.split(".")[1])


def value_of(task: Task, name: str) -> Any:
    """The task's value of the key that a setting sets. Not for `flops`, which sets none."""
    group, key = str(SETTINGS[name]).split(".")
    return getattr(getattr(task, group), key)


def key_content(task: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a task's plain data that a trial key holds."""
    return {
        group: {
            name: value
            for name, value in values.items()
            if (key := f"{group}.{name}") not in NOT_IN_KEY and not (key in ADDED_LATER and value == ADDED_LATER[key])
        }
        for group, values in task.items()
    }


def with_setting(task: Task, setting: Mapping[str, float | int | str]) -> Task:
    """The task at one setting of the study, validated again: a width may not fit the head dim."""
    changes: dict[str, dict[str, Any]] = {}
    for name, value in setting.items():
        if (place := place_of(name)) is not None:
            changes.setdefault(place[0], {})[place[1]] = value
    replaced = {group: dataclasses.replace(getattr(task, group), **values) for group, values in changes.items()}
    changed = dataclasses.replace(task, **replaced)
    validate(changed)
    return changed
