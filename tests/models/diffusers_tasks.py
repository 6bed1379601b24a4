"""Tasks on diffusers' classes, from the packaged configurations."""

import copy
import dataclasses
import functools

import torch
from torch import nn

from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.config.task import Task
from muxfer.models.build import build_model, conditioning
from tests.proxy_models.every_family import randomize

CLASSES = ("dit", "pixart", "sd3", "flux")
CAPTION = "a scan of the digit seven"
SHORT = {"steps": 5, "batch_size": 16, "warmup_steps": 1, "checkpoint_every": 3, "report_every": 1}


@functools.cache
def composed(name):
    return compose("lr-width", [f"model=diffusers_{name}", "model.depth=2"])


def task_of(name, **changes) -> Task:
    """The task of conf/model/diffusers_NAME.yaml on digits; `changes` are keys of the model."""
    plain = copy.deepcopy(composed(name))
    plain["model"] |= changes
    plain["training"] |= SHORT
    plain["evaluation"]["timesteps"] = 1
    if "base_depth" in changes:
        plain["optimizer"]["parametrization"] = "completep"
    if changes.get("learn_sigma"):
        plain["objective"] = compose("lr-width", ["objective=ddpm"])["objective"]
    task = parse(plain).task
    return dataclasses.replace(task, model=with_num_classes(task.model, 10))


def randomized(task: Task) -> nn.Module:
    model, _ = build_model(task, replicate=0)
    randomize(model, std=0.1)
    return model.eval()


def predicted(task: Task, model: nn.Module, *, captions=(CAPTION,), labels=(0, 0)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(len(labels), 1, 8, 8, generator=generator)
    with torch.no_grad():
        return conditioning(task.model, captions)(model, x_BCHW, torch.tensor([10.0, 800.0]), torch.tensor(labels))
