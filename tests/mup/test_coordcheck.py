"""The coordinate check on models small enough to know the answer, and its arithmetic."""

import math

import pytest
import torch
from torch import nn

from muxfer.errors import BadInput
from muxfer.mup import make_plan, param_groups, parametrize
from muxfer.mup.coordcheck import Run, coordinate_check
from muxfer.mup.slopes import TOLERANCE, Kind, judge

SIZES = (32, 64, 128, 256)


class MLP(nn.Module):
    """Two hidden layers between an input and a readout. The forward multiplies by width ** power, unseen by a plan."""

    def __init__(self, width: int, *, power: float = 0.0, zero_readout: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.readout = nn.Linear(width, 3)
        self.unseen = [(width / 64) ** power]
        if zero_readout:
            nn.init.zeros_(self.readout.weight)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BD = self.embed(x_BF)
        for layer in self.hidden:
            x_BD = torch.relu(layer(x_BD)) * self.unseen[0]
        return self.readout(x_BD)


def check(build, *, steps=10, parametrization="mup", base_lr=2**-10, seeds=(0, 1)):
    def make_run(width: int, seed: int) -> Run:
        plan = make_plan(build, width=width, base_width=64, parametrization=parametrization, readout="readout.weight")
        torch.manual_seed(seed)
        model = build(width)
        parametrize(model, plan)
        groups = param_groups(model, plan, base_lr=base_lr, weight_decay=0.0, eps=1e-8, betas=(0.9, 0.999))
        generator = torch.Generator().manual_seed(seed)
        x_BF, y_B3 = torch.randn(64, 8, generator=generator), torch.randn(64, 3, generator=generator)

        def loss(step: int) -> torch.Tensor:
            return (model(x_BF) - y_B3).square().mean()

        return Run(model=model, plan=plan, optimizer=torch.optim.AdamW(groups), loss=loss, probe=lambda: loss(0))

    return coordinate_check(make_run, sizes=SIZES, steps=steps, seeds=seeds)


def test_mup_passes_and_standard_fails():
    healthy, standard = check(MLP), check(MLP, parametrization="standard")
    assert healthy.passed, [line for line in healthy.lines if not line.passed]
    assert not standard.measures["change"]
    assert not standard.measures["update"]


def test_every_parameter_and_module_has_a_line_in_every_measure():
    lines = check(MLP).lines
    parameters = {name for name, _ in MLP(64).named_parameters()}
    for measure in ("update", "parameter_at_init"):
        assert {line.name for line in lines if line.measure == measure} == parameters
    modules = {"embed", "hidden.0", "hidden.1", "readout"}
    assert modules == {line.name for line in lines if line.measure == "output_at_init" and "(input)" not in line.name}
    assert {line.step for line in lines if line.measure == "change" and line.name in modules} == {1, 2, 3, 10}


def test_a_zero_readout_has_no_slope_at_initialization():
    found = check(lambda width: MLP(width, zero_readout=True))
    assert found.passed
    zero = [line for line in found.lines if line.name.startswith("readout") and line.slope is None]
    assert {line.measure for line in zero} == {"output_at_init", "parameter_at_init"}
    assert all(line.slope is not None for line in found.lines if line.measure == "update")


@pytest.mark.parametrize("power", [0.5, -0.5])
def test_a_forward_that_depends_on_the_width_fails(power):
    """A plan does not see a number in a list. The size of the trunk shows it."""
    found = check(lambda width: MLP(width, power=power))
    assert found.measures["parameter_at_init"]
    assert not found.measures["output_at_init"]
    assert {line.name for line in found.lines if not line.passed and line.measure == "output_at_init"} == {
        *("hidden.1 (input)", "readout (input)")
    }


def test_a_diverging_rate_is_refused():
    with pytest.raises(BadInput, match=r"diverged at step \d+: .* lower check.base_lr"):
        check(MLP, base_lr=1e30)


def test_a_matrix_whose_input_no_hook_sees_is_judged_by_its_rate():
    """torch's MultiheadAttention uses its weights without calling their module, so no hook sees their input."""

    class Attending(MLP):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.attention = nn.MultiheadAttention(width, width // 16, batch_first=True)

        def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
            x_BD = self.embed(x_BF)
            return self.readout(x_BD + self.attention(x_BD, x_BD, x_BD, need_weights=False)[0])

    found, standard = check(Attending), check(Attending, parametrization="standard")
    bare = {line.name: line for line in found.lines if line.measure == "update" and line.expected == -1}
    assert bare.keys() == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert all(line.passed for line in bare.values())
    assert not all(line.passed for line in standard.lines if line.name in bare and line.measure == "update")


def test_a_small_rate_changes_the_loss_little():
    assert check(MLP, base_lr=2**-17).loss_change < 0.01 < check(MLP, base_lr=2**-7).loss_change


KIND = Kind(role="hidden", is_branch_end=False, num_entries=4096)


def line_of(measure, values, kind=KIND, axis="width"):
    return judge((measure, "w", None), values, kind, sizes=SIZES, num_seeds=len(values[32]), axis=axis)


@pytest.mark.parametrize("slope", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_a_power_law_has_its_power_as_slope(slope):
    line = line_of("update", {size: [3.0 * size**slope] * 2 for size in SIZES})
    assert math.isclose(line.slope, slope, abs_tol=1e-12)
    assert math.isclose(line.high - line.low, 0, abs_tol=1e-6)
    assert line.passed == (abs(slope) <= TOLERANCE["update"])


def test_a_falling_update_passes_only_if_its_rate_is_right():
    right, wrong = ({size: [size**power] for size in SIZES} for power in (-1.0, -2.0))
    for slope, passed in ((-0.5, True), (-1.0, False), (0.5, False)):
        values = {size: [size**slope] for size in SIZES}
        key = ("update", "w", None)
        assert judge(key, values, KIND, sizes=SIZES, num_seeds=1, axis="width", steps=right).passed == passed
        assert not judge(key, values, KIND, sizes=SIZES, num_seeds=1, axis="width", steps=wrong).passed


def test_tolerances_are_two_sided_around_the_slope_of_the_role():
    for measure, role, expected in (
        ("parameter_at_init", "hidden", -0.5),
        ("parameter_at_init", "readout", -1.0),
        ("parameter_at_init", "input", 0.0),
        ("output_at_init", "readout", -0.5),
        ("output_at_init", "hidden", 0.0),
    ):
        kind = Kind(role=role, is_branch_end=False, num_entries=10**6)
        passed = {
            shift: line_of(measure, {size: [size ** (expected + shift)] for size in SIZES}, kind).passed
            for shift in (-0.45, -0.01, 0.01, 0.45)
        }
        assert passed == {-0.45: False, -0.01: True, 0.01: True, 0.45: False}


def test_over_depths_only_a_branch_end_may_fall():
    end = Kind(role="hidden", is_branch_end=True, num_entries=4096)
    falling = {size: [1 / size] for size in SIZES}
    assert line_of("change", falling, end, axis="depth").passed
    assert not line_of("change", falling, KIND, axis="depth").passed


def test_the_interval_is_that_of_students_t():
    """Numbers of a textbook: y = 2x + noise at x = 0, 1, 2, 3; slope 1.9, residual sum 0.45, t(2) = 4.3027."""
    ys = [0.0, 2.5, 3.5, 6.0]
    line = line_of("change", {size: [2.0**y] for size, y in zip(SIZES, ys, strict=True)})
    assert math.isclose(line.slope, 1.9, rel_tol=1e-12)
    assert math.isclose((line.high - line.low) / 2, 4.3027 * math.sqrt(0.45 / 2 / 5), rel_tol=0.01)


@pytest.mark.parametrize("odd", [0.0, math.nan, math.inf])
def test_values_zero_or_not_finite_at_some_sizes_only_fail(odd):
    values = {size: [1.0] for size in SIZES}
    assert not line_of("change", values | {128: [odd]}).passed


def test_tolerance_of_initialization_grows_for_few_entries():
    values = {32: [1.0], 64: [1.12], 128: [0.9], 256: [0.8]}
    few, many = (Kind(role="input", is_branch_end=False, num_entries=n) for n in (16, 65536))
    assert line_of("parameter_at_init", values, few).passed
    assert not line_of("parameter_at_init", values, many).passed
