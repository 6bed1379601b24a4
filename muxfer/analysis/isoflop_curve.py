"""A metric over log size at one budget: a polynomial by relative least squares, its minimum, and redrawn copies of it.

Noise is relative to the metric. Copies are a residual bootstrap: residuals, each scaled up by what the fit took from
it, are pooled over the budgets and drawn anew onto the fitted curve.

Legend: x log of the parameters less the budget's mean; P points, K coefficients, R draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
NUM_DRAWS = 2000
MISFIT = 0.001
"""Level of the F-test by which curves that are no parabolas show it."""
MIN_DF = 3
"""Fewer degrees of freedom tell no noise."""


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
    def num(self) -> int:
        return len(self.coefficients)

    @property
    def residuals(self) -> Array:
        return np.asarray(1 - self.design @ self.coefficients)

    @property
    def sum_squares(self) -> float:
        return float(self.residuals @ self.residuals)

    @property
    def df(self) -> int:
        return len(self.design) - self.num

    def value(self, x: Array | float, *, derivative: int = 0) -> Any:
        return powers(x, self.num, derivative) @ self.coefficients

    def at_params(self, params: Array) -> Array:
        return np.asarray(self.value(np.log(params) - self.center))

    def spread(self, x: Array | float, *, derivative: int = 0) -> Array:
        """Variance of the value (or of a derivative) at x for a noise of variance 1."""
        g = powers(x, self.num, derivative)
        return np.einsum("...k,kl,...l->...", g, self.gram_inverse, g)


def powers(x: Array | float, num: int, derivative: int = 0) -> Array:
    """[..., K]: each power of x, or a derivative of it."""
    x = np.asarray(x, dtype=float)
    out = np.zeros((*x.shape, num))
    power = np.ones_like(x)
    for k in range(derivative, num):  # by products: numpy's power takes ten times as long
        out[..., k] = math.perm(k, derivative) * power
        power = power * x
    return out


def fit_polynomial(params: Array, values: Array, *, degree: int, center: float) -> Polynomial:
    """Through values [P] above 0 at these sizes; of a lower degree where there are no more sizes than that."""
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


def fit_polynomials(columns: Sequence[tuple[Array, Array, float]], *, highest: int = 4) -> tuple[list[Polynomial], int]:
    """One curve for each (sizes, values, center), and their degree: 2, or what the pooled residuals ask for."""
    from scipy.special import fdtrc

    def fitted(degree: int) -> list[Polynomial]:
        return [fit_polynomial(params, values, degree=degree, center=center) for params, values, center in columns]

    chosen, best = 2, fitted(2)
    for degree in range(3, highest + 1):
        tried = fitted(degree)
        more, less = sum(c.df for c in tried), sum(c.df for c in best)
        left, before = sum(c.sum_squares for c in tried), sum(c.sum_squares for c in best)
        if more < MIN_DF or more == less or before <= 1e-24 * less:  # nothing is left but rounding
            continue
        ratio = (before - left) / (less - more) / max(left / more, 1e-30)
        if fdtrc(less - more, more, max(ratio, 0.0)) < MISFIT:
            chosen, best = degree, tried
    return best, chosen


def pooled_variance(fitted: Sequence[Polynomial]) -> float | None:
    """Of one relative value about its curve, pooled; None where too few points tell it."""
    df = sum(c.df for c in fitted)
    return sum(c.sum_squares for c in fitted) / df if df >= MIN_DF else None


def bootstrap_coefficients(fitted: Sequence[Polynomial], *, seed: int) -> tuple[list[Array], Array]:
    """Coefficients [R, K] of NUM_DRAWS copies of each curve, and the variance that each set of copies shows [R]."""
    rng = np.random.default_rng(seed)
    pool = []
    for c in fitted:
        left = 1 - np.einsum("pk,kp->p", c.design, c.pseudo_inverse)
        free = left > 1e-9
        pool.append(c.residuals[free] / np.sqrt(left[free]))
    errors = np.concatenate(pool)
    errors = errors - errors.mean()
    told = pooled_variance(fitted)
    assert told is not None
    if errors.any():
        errors = errors * np.sqrt(told / np.mean(errors**2))
    coefficients, left_over = [], np.zeros(NUM_DRAWS)
    for c in fitted:
        values = c.design @ c.coefficients + rng.choice(errors, size=(NUM_DRAWS, len(c.design)))
        drawn = values @ c.pseudo_inverse.T
        coefficients.append(drawn)
        left_over += np.sum((values - drawn @ c.design.T) ** 2, axis=1)
    return coefficients, left_over / sum(c.df for c in fitted)


def minimum(coefficients: Array, x: float) -> Array:
    """[R]: of each polynomial [R, K] the minimum that Newton's method finds from x; NaN where it bends downward."""
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
