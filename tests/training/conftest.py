"""A model small enough to train in milliseconds, and trainers of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from muxfer.config.task import Evaluation, RectifiedFlow, Training
from muxfer.data.dataset import Dataset
from muxfer.training.loop import Trainer

torch.set_num_threads(1)


class TinyModel(nn.Module):
    """Two linear layers over the pixels, time and label added in between."""

    def __init__(self, *, pixels: int = 64, width: int = 16, num_classes: int = 10, out: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(pixels, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.time = nn.Linear(1, width)
        self.readout = nn.Linear(width, pixels * out)

    def forward(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        h_BD = self.embed(x_BCHW.flatten(1)) + self.label(y_B) + self.time(t_B[:, None] / 1000)
        batch, _, height, width = x_BCHW.shape
        return self.readout(torch.tanh(h_BD)).reshape(batch, -1, height, width)


@pytest.fixture
def make_model() -> Callable[..., TinyModel]:
    def build(seed: int = 0, **options: Any) -> TinyModel:
        torch.manual_seed(seed)
        return TinyModel(**options)

    return build


@pytest.fixture
def make_trainer(digits: Dataset, make_model: Callable[..., TinyModel]) -> Callable[..., Trainer]:
    """`make_trainer(lr=1e-2, steps=30)`: keys of Training, else of Trainer."""

    def build(*, lr: float = 1e-2, model: nn.Module | None = None, **changes: Any) -> Trainer:
        training = {"steps": 30, "batch_size": 16, "warmup_steps": 5, "checkpoint_every": 10, "report_every": 4}
        training |= {name: changes.pop(name) for name in list(changes) if name in Training.__dataclass_fields__}
        model = model or make_model()
        groups = [
            {
                "params": [param],
                "names": [name],
                "lr": lr * (0.5 if name.startswith("readout") else 1),
                "weight_decay": 0.1 if param.ndim > 1 else 0.0,
                "eps": 1e-8,
                "betas": (0.9, 0.99),
            }
            for name, param in model.named_parameters()
        ]
        options = {
            "objective": RectifiedFlow(name="rectified_flow"),
            "data": digits,
            "training": Training(**training),
            "evaluation": Evaluation(timesteps=4),
            "replicate": 0,
            "fold": {"readout.weight": 0.25},
            "grad_clip": 0.5,
        }
        return Trainer(model, groups, **(options | changes))

    return build
