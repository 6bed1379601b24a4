"""Whether a coordinate check passes: for each measured value its slope over log size, the interval, and the tolerance.

    change              RMS change of a module's output on a fixed batch after steps 1, 2, 3 and the last: slope 0
    output_at_init      RMS(W x) / RMS(x) of a fresh weight against its role's slope; RMS of what is as wide as the
                        model (a module's output, the input of a hidden weight or readout): slope 0
    update              RMS(dW x) / RMS(x), or RMS(dp) of a vector or table, at the first step with a gradient: 0
    parameter_at_init   RMS of a fresh parameter against its role's slope

Under depth scaling the slopes are over log depth: -1 at the end of a branch, 0 elsewhere. A value that is exactly zero
at every size has no slope and passes. One that is zero at some sizes only fails. Pure numbers, no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muxfer.analysis.quantiles import t_quantile

MEASURES = ("change", "output_at_init", "update", "parameter_at_init")
TOLERANCE: Mapping[str, float] = {"change": 0.5, "output_at_init": 0.4, "update": 0.4, "parameter_at_init": 0.06}
"""How far a slope may be from the expected one. Two-sided: a value that shrinks with the width is as wrong as one that
grows.

These lie between the slopes of healthy models and those of broken ones: see docs/models.md.
"""
INCOHERENT_UPDATE = 0.8
"""The tolerance for a matrix whose update falls while its rate is right.

Gradients of a block with few heads are incoherent with their input. Such an update falls as m^-1/2 without a fault. A
wrong role makes it fall as 1/m.
"""
EXACT_RATE = 0.1  # A rate is right if the slope of RMS(dp) is at most this far from the slope of the role's rate
INIT_SLOPE: Mapping[str, float] = {"input": 0.0, "hidden": -0.5, "readout": -1.0, "finite": 0.0}
RATE_SLOPE: Mapping[str, float] = {"input": 0.0, "hidden": -1.0, "readout": -1.0, "finite": 0.0}
OUTPUT_SLOPE: Mapping[str, float] = {"input": 0.0, "hidden": 0.0, "readout": -0.5, "finite": 0.0}
"""Slope of RMS(W x) / RMS(x) at initialization over log width, by role."""


Key = tuple[str, str, int | None]  # (measure, name, step)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One slope over the log of the size, with its 95 % interval. `name` is a module or a parameter. `values` are
    geometric means over seeds, by size. `slope` is None where no slope can be fitted: the values are zero at every
    size, which passes, or some are zero, not finite or missing, which fails.
    """

    measure: str
    name: str
    role: str
    step: int | None
    expected: float
    slope: float | None
    low: float | None
    high: float | None
    values: Mapping[int, float]
    passed: bool


@dataclass(frozen=True, kw_only=True)
class CoordinateCheck:
    """The result of a coordinate check. It passes where every line passes."""

    parametrization: str
    axis: str
    sizes: tuple[int, ...]
    steps: int
    seeds: int
    lines: tuple[Line, ...]
    loss_change: float
    """Largest relative change of the loss over the steps. The rate was small enough if this is small."""

    @property
    def passed(self) -> bool:
        return all(line.passed for line in self.lines)

    @property
    def verdict(self) -> str:
        return "pass" if self.passed else "fail"

    @property
    def measures(self) -> dict[str, bool]:
        return {measure: all(line.passed for line in self.lines if line.measure == measure) for measure in MEASURES}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the expected slope depends on: the role, whether the weight holds the depth factor, the number of entries.
    `num_entries` is that of the smallest size. `is_bare`: no input of the matrix was seen. Its update is then RMS(dp),
    which falls as its rate does.
    """

    role: str
    is_branch_end: bool
    num_entries: int
    is_bare: bool = False


def judge(
    key: Key,
    values: Mapping[int, Sequence[float]],
    kind: Kind,
    *,
    sizes: Sequence[int],
    num_seeds: int,
    axis: str,
    steps: Mapping[int, Sequence[float]] | None = None,
) -> Line:
    """The line of one key. `values` has one number per seed, by size; `steps` has RMS(dp) of the same update."""
    measure, name, step = key
    if axis == "depth":
        expected = -1.0 if kind.is_branch_end else 0.0
    elif measure == "parameter_at_init":
        expected = INIT_SLOPE[kind.role]
    elif measure == "update" and kind.is_bare:
        expected = RATE_SLOPE[kind.role]
    else:
        expected = OUTPUT_SLOPE.get(kind.role, 0.0) if measure == "output_at_init" else 0.0
    by_size = {size: list(values.get(size, ())) for size in sizes}
    entries = [value for several in by_size.values() for value in several]
    means = {size: _geometric(several) for size, several in by_size.items()}
    slope = error = None
    if not any(entries):
        passed = True
    elif not all(value > 0 and math.isfinite(value) for value in entries) or len(entries) < len(sizes) * num_seeds:
        passed = False
    else:
        slope, error = _fit(by_size)
        distance = abs(slope - expected)
        tolerance = TOLERANCE[measure]
        if measure == "parameter_at_init":  # the initialization is exact, a draw of few entries is not
            tolerance += 4 * _slope_error_of_draws(by_size, kind.num_entries)
        elif measure == "update" and slope < expected and _is_rate_right(steps, kind, axis=axis):
            tolerance = INCOHERENT_UPDATE
        elif axis == "depth" and measure == "output_at_init" and not kind.role and slope < 0:
            # L branches of size 1/L add L^-1/2 to the trunk, on top of the embedding
            distance = max(0.0, -0.5 - slope)
        passed = distance <= tolerance
    return Line(
        measure=measure,
        name=name,
        role=kind.role,
        step=step,
        expected=expected,
        slope=slope,
        low=None if slope is None or error is None else slope - error,
        high=None if slope is None or error is None else slope + error,
        values=means,
        passed=passed,
    )


def _is_rate_right(steps: Mapping[int, Sequence[float]] | None, kind: Kind, *, axis: str) -> bool:
    """Whether RMS(dp) falls as the rate of the role does."""
    if not steps or not all(value > 0 for several in steps.values() for value in several):
        return False
    rate = (-1.0 if kind.is_branch_end else 0.0) if axis == "depth" else RATE_SLOPE[kind.role]
    return abs(_fit(steps)[0] - rate) <= EXACT_RATE


def _geometric(values: Sequence[float]) -> float:
    if not values or not all(value > 0 and math.isfinite(value) for value in values):
        return 0.0
    return math.exp(sum(map(math.log, values)) / len(values))


def _fit(values: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Least-squares slope of log value over log size, and half of its 95 % interval by Student's t."""
    points = [(math.log(size), math.log(value)) for size, several in values.items() for value in several]
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    freedom = len(points) - 2
    return slope, t_quantile(freedom) * math.sqrt(residual / freedom / spread)


def _slope_error_of_draws(values: Mapping[int, Sequence[float]], num_entries: int) -> float:
    """Standard error of the slope from random draws of `num_entries` alone: RMS is known to 1/sqrt(2n)."""
    logs = [math.log(size) for size, several in values.items() for _ in several]
    mean = sum(logs) / len(logs)
    return math.sqrt(1 / (2 * num_entries) / sum((x - mean) ** 2 for x in logs))
