"""From a task to a built and parametrized model, and to how it is called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from muxfer.config.models import Mmdit, Model
from muxfer.config.task import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from muxfer.data.dataset import Dataset
    from muxfer.mup import ScalePlan
    from muxfer.training.conditioning import Conditioning

EXAMPLE_CAPTIONS = ("a scan of the digit seven",)


def scale_plan(task: Task) -> "ScalePlan":
    """The scales of every parameter of the task's model, relative to its base sizes. Builds on the meta device."""
    from muxfer.models.families import family_of
    from muxfer.mup import make_plan

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


def build_model(task: Task, *, replicate: int, plan: "ScalePlan | None" = None) -> tuple["nn.Module", "ScalePlan"]:
    """A freshly initialized and parametrized model; equal tasks and replicates give bit-identical weights.

    `plan` None: the task's own.
    """
    import torch

    from muxfer.models.families import family_of
    from muxfer.mup import parametrize
    from muxfer.randomness import generator_of

    plan = scale_plan(task) if plan is None else plan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(task.training.seed, replicate, "init").initial_seed())
        model = family_of(task.model).build(task.model.width)
    parametrize(model, plan)
    return model, plan


def conditioning(model: Model, captions: Sequence[str]) -> "Conditioning":
    """How this model is called; `captions` are one a class, needed where it reads text."""
    from muxfer.data.captions import embed_captions
    from muxfer.models.families import family_of
    from muxfer.training.conditioning import Conditioning

    family = family_of(model)
    text_dim, pooled_dim = getattr(model, "text_dim", None), getattr(model, "pooled_dim", None)
    embedded = None
    if text_dim is not None or pooled_dim is not None:
        embedded = embed_captions(captions, text_dim=text_dim or 1, pooled_dim=pooled_dim or 1)
    return Conditioning(family.inputs, patch=model.patch, captions=embedded, output=family.output)


def repa_features(task: Task, data: "Dataset") -> "torch.Tensor | None":
    """Features of the training pictures that REPA aligns with; None where the task has no such loss."""
    if not task.objective.repa_weight:
        return None
    from muxfer.data.features import frozen_features

    assert isinstance(task.model, Mmdit)
    assert task.model.repa_dim is not None
    return frozen_features(data.train.images(slice(None)), patch=task.model.patch, dim=task.model.repa_dim)
