"""Where the curve of one row has its minimum, and between which positions it must lie.

A curve with one minimum rises beyond it. So the probability that the minimum lies below a position is at least that of
a positive slope there, and at least that of a rise between two cells up to there. Both are read from the posterior of
the curves; whichever bounds the minimum more closely counts. A diverged cell, or one far above the others, bounds it
surely.
"""

import numpy as np

from muxfer.analysis.curves import Curves, Interval
from muxfer.analysis.quantiles import TAIL

NUM_PLACES = 33
"""The number of positions between the outermost cells at which the slope is read."""
ZOOM = 9
"""The number of positions at which it is read between two of them, thrice."""


def locate(
    curves: Curves, axis: float, *, positions: np.ndarray, near: float, below: float | None, above: float | None
) -> Interval | None:
    """The minimum among the cells at these positions, the one next to `near`.

    None where the curve has no minimum between them, or nothing bounds it. `below` and `above` are the nearest settled
    cells outside; None where there is none.
    """
    slope = _slope_bounds(curves, axis, positions, near)
    if slope is None:
        return None
    if curves.noise is None:
        return Interval(value=slope.value, low=None, high=None)
    low, high = _pair_bounds(curves, axis, positions)
    lows = [end for end in (below, low, slope.low) if end is not None]
    highs = [end for end in (above, high, slope.high) if end is not None]
    if not lows and not highs:
        return None
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low >= high:  # more than one minimum
        low, high = min(lows), max(highs)
    value = slope.value if low is None else max(slope.value, low)
    return Interval(value=value if high is None else min(value, high), low=low, high=high)


def _pair_bounds(curves: Curves, axis: float, positions: np.ndarray) -> tuple[float | None, float | None]:
    """The highest cell from which the metric surely falls, and the lowest to which it surely rises."""
    first, second = np.triu_indices(len(positions), k=1)
    contrasts = np.eye(len(positions))[second] - np.eye(len(positions))[first]
    rises = curves.values(axis, positions, contrasts).above(0.0)
    low = positions[first[rises <= TAIL]].max(initial=-np.inf)
    high = positions[second[rises >= 1 - TAIL]].min(initial=np.inf)
    return (float(low) if np.isfinite(low) else None), (float(high) if np.isfinite(high) else None)


def _slope_bounds(curves: Curves, axis: float, positions: np.ndarray, near: float) -> Interval | None:
    """Where the slope is as likely negative as positive, and the ends where it is surely the one or the other.

    None where it rises or falls all along.
    """
    x = np.linspace(positions[0], positions[-1], NUM_PLACES)
    rises = curves.slopes(axis, x).above(0.0)
    middles = np.flatnonzero((rises[:-1] < 0.5) & (rises[1:] >= 0.5))
    if not len(middles):
        return None
    middle = int(middles[np.argmin(np.abs(x[middles] - near))])
    falling = np.flatnonzero(rises[: middle + 1] <= TAIL)
    rising = middle + np.flatnonzero(rises[middle:] >= 1 - TAIL)
    low = high = None
    if falling.size:
        i = int(falling[-1])
        low = _known(_crossing(curves, axis, x[i], x[min(i + 1, NUM_PLACES - 1)], TAIL), positions, beyond=-1)
    if rising.size:
        i = int(rising[0])
        high = _known(_crossing(curves, axis, x[max(i - 1, 0)], x[i], 1 - TAIL), positions, beyond=1)
    value = _crossing(curves, axis, x[middle], x[middle + 1], 0.5)
    return Interval(value=value, low=low, high=high)


def _known(end: float, positions: np.ndarray, *, beyond: int) -> float | None:
    """The end where two cells or more lie beyond it: one cell beside a wall tells no slope between it and the next."""
    return end if int((beyond * (positions - end) > 0).sum()) >= 2 else None


def _crossing(curves: Curves, axis: float, low: float, high: float, share: float) -> float:
    """Where the probability of a positive slope crosses `share` between two positions."""
    for _ in range(3):
        x = np.linspace(low, high, ZOOM)
        i = int(np.argmax(curves.slopes(axis, x).above(0.0) >= share))
        low, high = x[max(i - 1, 0)], x[max(i, 1)]
    return float((low + high) / 2)
