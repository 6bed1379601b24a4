"""A power law y = coefficient · C^exponent through values that were themselves fitted, with intervals that cover.

The line is fitted by least squares in logs. Its exponent, its coefficient and its value at a larger budget are weighted
sums of the logs, so one rule gives all their intervals. The half-width is a studentized bootstrap quantile times the
standard error from each value's own noise. It is widened where the values scatter about the line by more than that
noise explains. Values without a noise of their own get Student's t over their scatter.
"""

import math
from dataclasses import dataclass

import numpy as np

from muxfer.analysis.quantiles import LEVEL, f_tail, t_quantile

Array = np.ndarray
EXCESS = 0.05
"""Level of the F-test for more scatter about a law than noise."""


@dataclass(frozen=True, kw_only=True)
class LogNoise:
    """The errors of the logs: their variances [n] with `df` degrees of freedom, and bootstrap draws of the logs [R, n].

    `draw_variances` [R, n] are the variances that each draw alone would give.
    """

    variances: Array
    df: int
    draws: Array
    draw_variances: Array


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Least squares of `log_values` on `log_flops` [n each, n at least 3]; `noise` None: only the scatter is known."""

    log_flops: Array
    log_values: Array
    noise: LogNoise | None

    @property
    def exponent(self) -> Interval:
        return self._interval(self._slope)

    @property
    def coefficient(self) -> Interval:
        return _exp(self._interval(self._at(0.0)))

    def value(self, flops: float) -> float:
        return math.exp(float(self._at(math.log(flops)) @ self.log_values))

    def at(self, flops: float) -> Interval:
        """The law's value at a budget: where the line lies, not where one more run would."""
        return _exp(self._interval(self._at(math.log(flops))))

    def to_dict(self) -> dict[str, float]:
        """`low` and `high` are the exponent's."""
        slope, scale = self.exponent, self.coefficient
        own = {"coefficient": scale.value, "exponent": slope.value, "low": slope.low, "high": slope.high}
        return own | {"coefficient_low": scale.low, "coefficient_high": scale.high}

    @property
    def _slope(self) -> Array:
        x = self.log_flops - self.log_flops.mean()
        return np.asarray(x / (x @ x))

    def _at(self, log_flops: float) -> Array:
        return np.asarray(1 / len(self.log_flops) + (log_flops - self.log_flops.mean()) * self._slope)

    def _interval(self, weights: Array) -> Interval:
        """The interval of the weighted sum of the logs, by the rule of the module."""
        y = self.log_values
        n = len(y)
        estimate = float(weights @ y)
        basis = np.stack([np.ones(n), self.log_flops - self.log_flops.mean()])
        leverage = np.einsum("in,in->n", basis, np.linalg.pinv(basis).T)
        residual = y - np.linalg.pinv(basis) @ (basis @ y)
        scatter = float(residual @ residual)
        by_scatter = float(t_quantile(n - 2) * math.sqrt(scatter / (n - 2) * (weights @ weights)))
        noise = self.noise
        if noise is None:
            return Interval(value=estimate, low=estimate - by_scatter, high=estimate + by_scatter)
        error = math.sqrt(float(noise.variances @ weights**2))
        draw_errors = np.sqrt(noise.draw_variances @ weights**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            pivots = np.abs(noise.draws @ weights - estimate) / draw_errors
        pivots = pivots[np.isfinite(pivots)]
        quantile = float(np.quantile(pivots, LEVEL)) if len(pivots) else 0.0
        expected = float(noise.variances @ (1 - leverage))
        ratio = scatter / expected if expected > 0 else 1.0
        half = quantile * error * math.sqrt(max(1.0, ratio))
        if f_tail(n - 2, noise.df, ratio) < EXCESS:
            half = max(half, by_scatter)
        return Interval(value=estimate, low=estimate - half, high=estimate + half)


def _exp(interval: Interval) -> Interval:
    """The interval of the exponentials. Ends that no float holds stay finite: JSON has no infinity."""
    low, value, high = (math.exp(min(max(x, -700.0), 700.0)) for x in (interval.low, interval.value, interval.high))
    return Interval(value=value, low=low, high=high)
