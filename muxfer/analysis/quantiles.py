"""Quantiles of Student's t and of F, for every interval and every test. scipy is imported when first used."""

from functools import cache

LEVEL = 0.95
"""The level of every interval, two-sided."""


@cache
def t_quantile(df: int) -> float:
    """Student's t of a two-sided 95 % interval: its 0.975 quantile at `df` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + LEVEL / 2))


def f_tail(numerator_df: int, denominator_df: int, ratio: float) -> float:
    """Probability that an F-distributed ratio of variances exceeds this one: small where the ratio is no accident."""
    from scipy.special import fdtrc

    return float(fdtrc(numerator_df, denominator_df, ratio))
