"""Quantiles of Student's t and of F, and mixtures of the first. scipy is imported when first used."""

from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.95
"""The level of every interval, two-sided."""
TAIL = (1 - LEVEL) / 2


@cache
def t_quantile(df: int) -> float:
    """Student's t of a two-sided 95 % interval: its 0.975 quantile at `df` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - TAIL))


def f_tail(numerator_df: int, denominator_df: int, ratio: float) -> float:
    """Probability that an F-distributed ratio of variances exceeds this one: small where the ratio is no accident."""
    from scipy.special import fdtrc

    return float(fdtrc(numerator_df, denominator_df, ratio))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """k quantities, each a mixture of c Student's t: weights [c], locations and scales [c, k].

    `df` 0: nothing tells the noise, and the scales mean nothing.
    """

    weights: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    df: int

    @property
    def mean(self) -> np.ndarray:
        """[k]."""
        return np.asarray(self.weights @ self.location)

    def only(self, i: int) -> "Mixture":
        """Quantity i alone."""
        keep = slice(i, i + 1)
        return Mixture(weights=self.weights, location=self.location[:, keep], scale=self.scale[:, keep], df=self.df)

    def above(self, value: float | np.ndarray) -> np.ndarray:
        """The probability [k] of each quantity to exceed the value (or its own value [k])."""
        if self.df <= 0:
            return np.asarray(self.weights @ (self.location > value))
        from scipy.special import stdtr

        return np.asarray(self.weights @ stdtr(self.df, (self.location - value) / self.scale))

    def quantile(self, share: float) -> np.ndarray:
        """[k], by bisection to a billionth of the components' spread."""
        from scipy.special import stdtrit

        ends = self.location + self.scale * float(stdtrit(self.df, share))
        low, high = ends.min(axis=0), ends.max(axis=0)
        for _ in range(30):
            middle = (low + high) / 2
            is_below = 1 - self.above(middle) < share
            low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
        return np.asarray((low + high) / 2)
