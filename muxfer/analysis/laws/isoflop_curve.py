"""A metric over log size at one budget: a polynomial by relative least squares, its minimum, and redrawn copies of it.

Noise is relative to the metric. Copies are a residual bootstrap: each residual is scaled up by what the fit took from
it. The residuals of all budgets are pooled and drawn anew onto the fitted curve.

Legend: x log of the parameters less the budget's mean; P points, K coefficients, R draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muxfer.analysis.laws.power_law import Array
from muxfer.analysis.quantiles import f_tail

NUM_DRAWS = 2000
MISFIT = 0.001
"""Level of the F-test for curves that are no parabolas."""
MIN_DF = 3
"""Fewer degrees of freedom measure no noise."""


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """A polynomial in x: coefficients [K], lowest power first, fitted to logs of sizes [P] and relative residuals [P].

    `gram_inverse` [K, K] times the noise's variance is the coefficients' covariance.
    """

    center: float
    coefficients: Array
    gram_inverse: Array
    pseudo_inverse: Array
    """[K, P], from relative values to coefficients."""
    design: Array
    """[P, K], back to relative values."""

    @property
    def num_coefficients(self) -> int:
        return len(self.coefficients)

    @property
    def residuals(self) -> Array:
        return np.asarray(1 - self.design @ self.coefficients)

    @property
    def sum_squares(self) -> float:
        return float(self.residuals @ self.residuals)

    @property
    def df(self) -> int:
        return len(self.design) - self.num_coefficients

    def value(self, x: Array | float, *, derivative: int = 0) -> Any:
        return powers(x, self.num_coefficients, derivative) @ self.coefficients

    def at_params(self, params: Array) -> Array:
        return np.asarray(self.value(np.log(params) - self.center))

    def spread(self, x: Array | float, *, derivative: int = 0) -> Array:
        """Variance of the value (or of a derivative) at x for a noise of variance 1."""
        g = powers(x, self.num_coefficients, derivative)
        return np.einsum("...k,kl,...l->...", g, self.gram_inverse, g)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """NUM_DRAWS bootstrap copies: the coefficients [R, K] of each curve, and the variance of each set of copies [R]."""

    coefficients: list[Array]
    variances: Array


def powers(x: Array | float, num: int, derivative: int = 0) -> Array:
    """[..., K]: each power of x, or a derivative of it."""
    x = np.asarray(x, dtype=float)
    out = np.zeros((*x.shape, num))
    power = np.ones_like(x)
    for k in range(derivative, num):  # by products: numpy's power takes ten times as long
        out[..., k] = math.perm(k, derivative) * power
        power = power * x
    return out


def fit_polynomials(columns: Sequence[tuple[Array, Array, float]], *, highest: int = 4) -> tuple[list[Polynomial], int]:
    """One curve for each (sizes, values, center), and their degree.

    The degree is 2, or a higher one up to `highest` where the pooled residuals show that it fits better.
    """

    def fit(degree: int) -> list[Polynomial]:
        return [_fit_polynomial(params, values, degree=degree, center=center) for params, values, center in columns]

    degree, best = 2, fit(2)
    for candidate in range(3, highest + 1):
        curves = fit(candidate)
        df, best_df = sum(c.df for c in curves), sum(c.df for c in best)
        squares, best_squares = sum(c.sum_squares for c in curves), sum(c.sum_squares for c in best)
        if df < MIN_DF or df == best_df or best_squares <= 1e-24 * best_df:  # the residuals are rounding alone
            continue
        ratio = (best_squares - squares) / (best_df - df) / max(squares / df, 1e-30)
        if f_tail(best_df - df, df, max(ratio, 0.0)) < MISFIT:
            degree, best = candidate, curves
    return best, degree


def pooled_variance(curves: Sequence[Polynomial]) -> float | None:
    """Variance of one relative value about its curve, over all curves; None with fewer than MIN_DF."""
    df = sum(c.df for c in curves)
    return sum(c.sum_squares for c in curves) / df if df >= MIN_DF else None


def bootstrap(curves: Sequence[Polynomial], *, seed: int) -> Copies | None:
    """Copies of the curves through redrawn residuals; None where the noise is unknown."""
    noise = pooled_variance(curves)
    if noise is None:
        return None
    rng = np.random.default_rng(seed)
    pool = []
    for c in curves:
        remaining = 1 - np.einsum("pk,kp->p", c.design, c.pseudo_inverse)
        free = remaining > 1e-9
        pool.append(c.residuals[free] / np.sqrt(remaining[free]))
    errors = np.concatenate(pool)
    errors = errors - errors.mean()
    if errors.any():
        errors = errors * np.sqrt(noise / np.mean(errors**2))
    coefficients, sum_squares = [], np.zeros(NUM_DRAWS)
    for c in curves:
        values = c.design @ c.coefficients + rng.choice(errors, size=(NUM_DRAWS, len(c.design)))
        drawn = values @ c.pseudo_inverse.T
        coefficients.append(drawn)
        sum_squares += np.sum((values - drawn @ c.design.T) ** 2, axis=1)
    return Copies(coefficients=coefficients, variances=sum_squares / sum(c.df for c in curves))


def minimum(coefficients: Array, x: float) -> Array:
    """[R]: the minimum of each polynomial [R, K] by Newton's method from x; NaN where it bends downward."""
    num = coefficients.shape[-1]
    at = np.full(len(coefficients), x, dtype=float)
    with np.errstate(all="ignore"):
        for _ in range(30):
            first = np.einsum("rk,rk->r", coefficients, powers(at, num, 1))
            second = np.einsum("rk,rk->r", coefficients, powers(at, num, 2))
            step = np.where(second > 0, first / second, np.nan)
            at = at - step
            if not np.any(np.abs(step) > 1e-13):
                break
    return at


def _fit_polynomial(params: Array, values: Array, *, degree: int, center: float) -> Polynomial:
    """Through values [P] above 0 at these sizes. The degree is lower where there are no more sizes than that."""
    num = min(degree, len(np.unique(params)) - 1) + 1
    design = powers(np.log(params) - center, num) / values[:, None]
    inverse = np.linalg.pinv(design)
    return Polynomial(
        center=center,
        coefficients=inverse.sum(axis=1),
        gram_inverse=inverse @ inverse.T,
        pseudo_inverse=inverse,
        design=design,
    )
