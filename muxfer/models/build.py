"""Builds a task's model at its scales, and says how the model is called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from muxfer.config.models import Mmdit, Model
from muxfer.config.task import Optimizer, Task
from muxfer.data.captions import embed_captions
from muxfer.data.dataset import Dataset
from muxfer.data.features import frozen_features
from muxfer.data.randomness import generator_of
from muxfer.models.families import family_of
from muxfer.mup import ScalePlan, make_plan, param_groups, parametrize
from muxfer.training.conditioning import Conditioning

EXAMPLE_CAPTIONS = ("a scan of the digit seven",)


def scale_plan(task: Task) -> ScalePlan:
    """The scales of every parameter of the task's model, relative to its base sizes. Builds on the meta device."""
    family = family_of(task.model)
    return make_plan(
        family.build,
        width=task.model.width,
        base_width=task.model.base_width,
        parametrization=task.optimizer.parametrization,
        output_multiplier=task.optimizer.output_multiplier,
        readout=family.readout,
        declared=family.declared,
        depth=task.model.depth,
        base_depth=task.model.base_depth or task.model.depth,
        branches=family.branches,
        branch_ends=family.branch_ends,
    )


def build_model(task: Task, *, replicate: int, plan: ScalePlan | None = None) -> tuple[nn.Module, ScalePlan]:
    """A fresh parametrized model, bit-identical for equal tasks and replicates. `plan`: the task's own by default."""
    plan = scale_plan(task) if plan is None else plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(task.training.seed, replicate, "init").initial_seed())
        model = family_of(task.model).build(task.model.width)
    parametrize(model, plan)
    return model, plan


def adamw_groups(model: nn.Module, plan: ScalePlan, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of AdamW, each with the optimizer's base settings times its scale."""
    rates = {"base_lr": optimizer.base_lr, "weight_decay": optimizer.weight_decay, "eps": optimizer.eps}
    return param_groups(model, plan, betas=(optimizer.beta1, optimizer.beta2), **rates)


def conditioning(model: Model, captions: Sequence[str]) -> Conditioning:
    """How this model is called. `captions` has one caption per class, which models that read text need."""
    family = family_of(model)
    text_dim, pooled_dim = getattr(model, "text_dim", None), getattr(model, "pooled_dim", None)
    embedded = None
    if text_dim is not None or pooled_dim is not None:
        embedded = embed_captions(captions, text_dim=text_dim or 1, pooled_dim=pooled_dim or 1)
    return Conditioning(family.inputs, patch=model.patch, captions=embedded, output=family.output)


def repa_features(task: Task, data: Dataset) -> torch.Tensor | None:
    """Features of the training pictures that REPA aligns with. None where the task has no such loss."""
    if not task.objective.repa_weight:
        return None
    assert isinstance(task.model, Mmdit)
    assert task.model.repa_dim is not None
    return frozen_features(data.train.images(slice(None)), patch=task.model.patch, dim=task.model.repa_dim)
