"""The coordinate check of a task: its own model, data, loss and optimizer at several widths or depths.

It runs on the CPU, at a constant small rate and without clipping. Everything else is as in the task.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial

import torch
from torch import nn

from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.randomness import generator_of
from muxfer.data.source import load_dataset
from muxfer.data.stream import Stream
from muxfer.models.build import adamw_groups, build_model, conditioning, repa_features, scale_plan
from muxfer.models.families import family_of
from muxfer.mup.coordcheck import Run, coordinate_check
from muxfer.mup.mutants import Mutant, mutated
from muxfer.mup.rules import ScalePlan
from muxfer.mup.slopes import CoordinateCheck
from muxfer.training import objective
from muxfer.training.optim import build_adamw

PROBE_STEP = 1_000_000  # Number of the fixed batch that the check measures on and never trains on
CHECK_EPS = 1e-20
"""AdamW's eps in a coordinate check. With zero gates a block's first gradients are near the usual eps of 1e-8, which
then hides the slope of a rate (QK-norm gains: -0.3). The rule for eps has tests of its own."""


def check_coordinates(
    task: Task,
    *,
    axis: str,
    sizes: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    base_lr: float,
    batch_size: int,
    mutant: Mutant | None = None,
) -> CoordinateCheck:
    """The coordinate check over widths or depths (`axis`). A `mutant` breaks the plan first: the check should fail."""

    def make_run(size: int, seed: int) -> Run:
        sized = with_setting(small, {axis: size})
        plan = scale_plan(sized)
        return coordinate_run(sized, replicate=seed, plan=plan if mutant is None else mutated(plan, mutant))

    small = replace(
        task,
        optimizer=replace(task.optimizer, base_lr=base_lr),
        training=replace(task.training, batch_size=batch_size, warmup_steps=0),
    )
    return coordinate_check(make_run, sizes=sizes, steps=steps, seeds=seeds, axis=axis)


def coordinate_run(task: Task, *, replicate: int, plan: ScalePlan) -> Run:
    """One run of the task's model, scaled by this plan, on real batches of its data."""
    data = load_dataset(task.data)
    model, plan = build_model(task, replicate=replicate, plan=plan)
    _pair_finite(model, plan, task, replicate=replicate)
    training = task.training
    groups = adamw_groups(model, plan, replace(task.optimizer, eps=CHECK_EPS))
    predict = partial(conditioning(task.model, data.captions), model)
    features_NTE = repa_features(task, data)
    stream = Stream(
        data.train,
        num_classes=data.num_classes,
        batch_size=training.batch_size,
        label_dropout=training.label_dropout,
        seed=training.seed,
        replicate=replicate,
    )

    def loss(step: int) -> torch.Tensor:
        batch = stream.batch(step)
        torch.manual_seed(generator_of(training.seed, replicate, "model", step).initial_seed())
        t_B = objective.timesteps(task.objective, batch.u_B)
        if t_B.is_floating_point():
            t_B = t_B.float()
        features_BTE = None if features_NTE is None else features_NTE[batch.index_B]
        return objective.losses(
            task.objective, predict, batch.x_BCHW, batch.y_B, t_B, batch.noise_BCHW, features_BTE
        ).mean()

    patterns = family_of(task.model).branch_ends
    return Run(
        model=model,
        plan=plan,
        optimizer=build_adamw(groups),
        loss=loss,
        probe=partial(loss, PROBE_STEP),
        branch_ends=[name for name in plan.scales if any(fnmatch(name, pattern) for pattern in patterns)],
    )


def _pair_finite(model: nn.Module, plan: ScalePlan, task: Task, *, replicate: int) -> None:
    """Copy the base width's values into tensors that do not grow, where initialization and scale are the same.
    Otherwise their random draw adds noise to the slopes. A 3x3 convolution from one channel to one, after the readout,
    moved a slope by 0.5.
    """
    if plan.width == plan.base_width:
        return
    base, base_plan = build_model(with_setting(task, {"width": plan.base_width}), replicate=replicate)
    values = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, own = plan.scales.get(name), plan.initializations.get(name)
            is_drawn_alike = own is not None and own == plan.base_initializations[name]
            if scale is not None and scale.role == "finite" and is_drawn_alike and scale == base_plan.scales[name]:
                parameter.copy_(values[name])
