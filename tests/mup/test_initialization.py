"""Recorded initializations match real values, and unrecognised ones are reported as unknown."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import init

from muxfer.mup.initialization import measure, recording

SHAPE = (200, 300)


def filled(fill: Callable[[torch.Tensor], object]) -> Callable[[], nn.Parameter]:
    def make() -> nn.Parameter:
        parameter = nn.Parameter(torch.empty(SHAPE))
        fill(parameter)
        return parameter

    return make


def trunc_normal_by_erfinv(tensor: torch.Tensor, std: float, low: float, high: float) -> None:
    """As timm and torch up to 2.11 do it."""
    ends = [2 * (1 + math.erf(x / std / math.sqrt(2))) / 2 - 1 for x in (low, high)]
    with torch.no_grad():
        tensor.uniform_(*ends)
        tensor.erfinv_().mul_(std * math.sqrt(2)).add_(0.0).clamp_(min=low, max=high)


def changed_in_place(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.normal_(1.0, 0.5).mul_(2).sub_(1).div_(4)


RECORDED = {
    "normal": filled(lambda w: init.normal_(w, mean=0.5, std=0.02)),
    "uniform": filled(lambda w: init.uniform_(w, -1.0, 3.0)),
    "kaiming uniform": filled(lambda w: init.kaiming_uniform_(w, a=math.sqrt(5))),
    "kaiming normal": filled(lambda w: init.kaiming_normal_(w)),
    "xavier uniform": filled(lambda w: init.xavier_uniform_(w)),
    "xavier normal on a view": filled(lambda w: init.xavier_normal_(w.view(100, -1))),
    "trunc normal": filled(lambda w: init.trunc_normal_(w, std=0.02)),
    "trunc normal, cut near": filled(lambda w: init.trunc_normal_(w, mean=0.1, std=1.0, a=-0.5, b=1.0)),
    "trunc normal over another draw": filled(lambda w: (init.ones_(w), init.trunc_normal_(w, std=0.02))),
    "trunc normal by erfinv": filled(lambda w: trunc_normal_by_erfinv(w, 0.02, -2.0, 2.0)),
    "trunc normal by erfinv, cut near": filled(lambda w: trunc_normal_by_erfinv(w, 1.0, -0.5, 1.0)),
    "constant": filled(lambda w: init.constant_(w, 1e-5)),
    "zeros": filled(lambda w: init.zeros_(w)),
    "in place": filled(changed_in_place),
    "randn times a number": lambda: nn.Parameter(torch.randn(SHAPE) * 0.02),
    "number times ones": lambda: nn.Parameter(1e-5 * torch.ones(SHAPE)),
    "rand over a root": lambda: nn.Parameter(torch.rand(SHAPE) / 300**0.5),
    "full": lambda: nn.Parameter(torch.full(SHAPE, 3.0)),
    "linear": lambda: nn.Linear(300, 200).weight,
    "linear cast": lambda: nn.Linear(300, 200).double().weight,
    "embedding": lambda: nn.Embedding(*SHAPE).weight,
    "attention": lambda: nn.MultiheadAttention(100, 4).in_proj_weight,
    "norm": lambda: nn.LayerNorm(300).weight,
    "replaced": lambda: nn.Parameter(nn.Linear(300, 200).weight.data.clone()),
}


@pytest.mark.parametrize("make", RECORDED.values(), ids=RECORDED.keys())
def test_recorded_initializations_match_real_values(make: Callable[[], nn.Parameter]) -> None:
    with torch.device("meta"), recording() as recorder:
        initialization = recorder.initialization(make())
    torch.manual_seed(0)
    real = make().detach().double()
    assert initialization is not None
    assert initialization.recorded
    error = initialization.std / math.sqrt(real.numel())
    assert real.mean().item() == pytest.approx(initialization.mean, abs=6 * error, rel=1e-6)
    assert real.std(correction=0).item() == pytest.approx(initialization.std, rel=0.02)


def half_random() -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(SHAPE))
    init.normal_(parameter.data[:100])
    return parameter


def from_numpy() -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(SHAPE))
    parameter.data.copy_(torch.from_numpy(np.ones(SHAPE)))
    return parameter


UNKNOWN = {
    "orthogonal over another draw": lambda: init.orthogonal_(nn.Linear(300, 200).weight),
    "dirac over another draw": lambda: init.dirac_(nn.Conv1d(8, 8, 3).weight),
    "sparse over another draw": lambda: init.sparse_(nn.Linear(300, 200).weight, 0.5),
    "identity over another draw": lambda: init.eye_(nn.Linear(300, 200).weight),
    "half random": half_random,
    "from numpy": from_numpy,
    "never filled": filled(lambda w: None),
    "cut after the draw": filled(lambda w: init.normal_(w).data.clamp_(-1, 1)),
    "two draws added": lambda: nn.Parameter(torch.randn(SHAPE) + torch.randn(SHAPE)),
    "squared": filled(lambda w: init.normal_(w).data.pow_(2)),
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unrecognised_initialization_is_unknown(make: Callable[[], nn.Parameter]) -> None:
    with torch.device("meta"), recording() as recorder:
        assert recorder.initialization(make()) is None


def test_a_padding_row_keeps_the_initialization_of_the_other_rows() -> None:
    with torch.device("meta"), recording() as recorder:
        initialization = recorder.initialization(nn.Embedding(10, 4, padding_idx=3).weight)
    assert initialization is not None
    assert (initialization.mean, initialization.std, initialization.recorded) == (0.0, 1.0, False)


def test_a_measured_mean_near_zero_becomes_zero() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert measure(values).mean == 0
    assert measure(values + 1).mean == pytest.approx(1, abs=0.1)
    assert measure(torch.full((5,), 0.1)).std == 0
