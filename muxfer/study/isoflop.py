"""The settings of an isoFLOP study and the target that its fit sizes, both by one rule for what a budget pays for.

A budget is C = 6 N D, parameters times tokens seen (search.flops_by=6nd), or 6 times the counted multiply-accumulates
times the samples seen (counted). A token is a patch of the image; text is not counted. Warm-up keeps its share of the
steps. A budget leaves out sizes that it can't train for MIN_STEPS steps, as long as three sizes remain.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muxfer.analysis.laws.isoflop_points import Points
from muxfer.analysis.laws.scaling_law import IsoflopFit, predict
from muxfer.config.models import Model
from muxfer.config.study import Search
from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.trial import Record, Setting

if TYPE_CHECKING:
    from muxfer.models.count import Measure, ModelCost

MIN_STEPS = 20
MIN_SIZES = 3
MAX_STRETCH = 2.0
"""The nearest model that can be built may have at most this many times more or fewer parameters than predicted."""


@dataclass(frozen=True, kw_only=True)
class TargetSize:
    """A target sized by a fit: what is built (`params`, `steps`), and the loss that the law predicts at its budget."""

    width: int
    depth: int
    steps: int
    params: int
    loss: float


def isoflop_settings(search: Search, task: Task, measure: "Measure") -> list[Setting]:
    """Each budget with each size that it can train: {"flops", "width", "steps"}, and "depth" where depths are compared.
    With a warm-up, "warmup_steps" too. BadInput where a budget keeps fewer than three sizes.
    """
    models = [_sized(task.model, search.hp, int(size), search.width_per_depth) for size in search.grids[search.hp]]
    steps_per_flop = [1 / _step_flops(task, measure(model), search.flops_by) for model in models]
    settings: list[Setting] = []
    for flops in search.grids["flops"]:
        steps = [round(flops * each) for each in steps_per_flop]
        fitting = [(model, n) for model, n in zip(models, steps, strict=True) if n >= MIN_STEPS]
        if len(fitting) < MIN_SIZES:
            model, n = next((model, n) for model, n in zip(models, steps, strict=True) if n < MIN_STEPS)
            size = getattr(model, search.hp)
            raise BadInput(
                f"search.flops {flops:.3g} trains {search.hp} {size} for {n} steps: expected at least {MIN_STEPS} at"
                f" {MIN_SIZES} sizes or more; raise the budget, add smaller sizes, or lower training.batch_size"
            )
        settings += [_setting(flops, model, n, search, task) for model, n in fitting]
    return settings


def points_of(records: Sequence[Record], task: Task) -> Points:
    """The trials of an isoFLOP study as points. A diverged trial has no loss. `task` has the batch and image size."""
    settled = [record for record in records if record.kind == "proxy" and record.outcome.settled]
    tokens_per_step = task.training.batch_size * tokens_per_sample(task.model)
    losses = [math.nan if record.metric is None else record.metric for record in settled]
    return Points(
        flops=np.array([float(record.setting["flops"]) for record in settled]),
        params=np.array([float(record.num_parameters) for record in settled]),
        tokens=np.array([float(record.setting["steps"]) for record in settled]) * tokens_per_step,
        loss=np.array(losses, dtype=float),
    )


def target_size(
    fit: IsoflopFit,
    flops: float,
    task: Task,
    measure: "Measure",
    *,
    width_per_depth: int | None = None,
    flops_by: str = "6nd",
) -> TargetSize:
    """The model nearest to the predicted size at a budget, and the steps that the budget then pays for. The width is a
    multiple of the head dim at the task's depth. With `width_per_depth` the depth is searched, and the width follows it
    as in the study.
    """
    prediction = predict(fit, flops)
    hp = "width" if width_per_depth is None else "depth"
    unit = math.lcm(task.model.head_dim, 4) if width_per_depth is None else 1
    model, params = _nearest(prediction.params.value, (task.model, hp, unit, width_per_depth), measure)
    if not 1 / MAX_STRETCH <= params / prediction.params.value <= MAX_STRETCH:
        raise BadInput(
            f"{flops:.3g} FLOPs want a model of {prediction.params.value:.3g} parameters: the nearest has {params:.3g}"
            f" ({hp} {getattr(model, hp)}); change model.depth or model.head_dim, or give another budget"
        )
    steps = round(flops / _step_flops(task, measure(model), flops_by))
    if steps < MIN_STEPS:
        raise BadInput(
            f"{flops:.3g} FLOPs train width {model.width} for {steps} steps: expected at least {MIN_STEPS}; raise the"
            " budget, or lower training.batch_size"
        )
    return TargetSize(width=model.width, depth=model.depth, steps=steps, params=params, loss=prediction.loss.value)


def tokens_per_sample(model: Model) -> int:
    return (model.image_size // model.patch) ** 2


def _step_flops(task: Task, cost: "ModelCost", flops_by: str) -> float:
    per_sample = cost.parameters * tokens_per_sample(task.model) if flops_by == "6nd" else cost.macs
    return 6.0 * per_sample * task.training.batch_size


def _sized(model: Model, hp: str, size: int, width_per_depth: int | None) -> Model:
    changes = {hp: size} if width_per_depth is None else {"depth": size, "width": width_per_depth * size}
    anything: Any = model  # a union's replace takes no keywords that all its members have
    changed: Model = dataclasses.replace(anything, **changes)
    changed.validate()
    return changed


def _setting(flops: float, model: Model, steps: int, search: Search, task: Task) -> Setting:
    sizes = {"depth": model.depth} if search.hp == "depth" else {}
    setting: dict[str, float | int | str] = {"flops": flops, "width": model.width, **sizes, "steps": steps}
    if task.training.warmup_steps:
        setting["warmup_steps"] = round(task.training.warmup_steps / task.training.steps * steps)
    return setting


def _nearest(wanted: float, size: tuple[Model, str, int, int | None], measure: "Measure") -> tuple[Model, int]:
    """Double the size until its parameters, which grow with it, are too many; then bisect."""
    model, hp, unit, width_per_depth = size

    def built(units: int) -> tuple[Model, int]:
        sized = _sized(model, hp, units * unit, width_per_depth)
        return sized, measure(sized).parameters

    high = 1
    while built(high)[1] < wanted and high < 2**14:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if built(middle)[1] < wanted else (low, middle)
    return min((built(low), built(high)), key=lambda candidate: abs(math.log(candidate[1] / wanted)))
