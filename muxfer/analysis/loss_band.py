"""The target's training loss as its proxies' losses predict it, step by step, and when the target has left that band.

A target is the expensive run. One that goes wrong shows it early: its loss is where no proxy's loss was. Each step of
the target is compared with one step of a proxy, which depends on the rate alone. It is the latest step that satisfies
two conditions:

- The proxy had spent no more of the rate: the sum of all rates up to its step is at most the target's. So a longer
  warm-up shifts the comparison. Under a constant schedule the same steps after warm-up are compared.
- The proxy's rate was no lower, once it falls. A lower rate lowers the loss by itself. So under a cosine schedule a
  longer target is compared at the same share of its steps, not at the same step.

A target that trains as its proxies did has by then trained at least as much, at a rate that is no higher. So its loss
is at most theirs. That holds for a shorter, an equal and a longer target. Beyond the proxies' horizon the last value
is kept.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SMOOTHING = 0.05
"""Time constant of the smoothing, as a share of the proxies' steps."""
TOLERANCE = 0.03
"""In log loss: for what no curve's noise shows, such as the luck of an initialization."""
NUM_SIGMAS = 3.0
SEEDS_OVER_SCATTER = 2.0
"""Runs of other seeds lie farther apart than the scatter of their curves, because they also differ for long stretches:
1.2 to 3.3 times in nine pairs on digits (2026-11)."""
PATIENCE = 0.1
"""A target is halted once its smoothed loss was above the limit for this share of the proxies' steps, or of its own
where they are fewer..."""
MIN_REPORTS = 5
"""... and for this many reports."""
TINY = 1e-300
"""A loss of 0 has no logarithm."""
MAX_POSITIONS = 400
"""The number of steps at which a band is kept; between them it is a straight line."""


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The training loss of one proxy.

    `size` is its value of the axis, `points` are (steps done, mean loss since the point before), `rates` the
    schedule's multiplier at each of its steps.
    """

    size: float
    points: Sequence[tuple[int, float]]
    rates: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class LossBand:
    """The prediction for a target: `predicted` and `limit` are losses at `steps`, smoothed as `smoothed` does.

    A target is halted when it was above the limit for `patience_steps` and for `min_reports` reports.
    """

    steps: tuple[int, ...]
    predicted: tuple[float, ...]
    limit: tuple[float, ...]
    smoothing_steps: float
    patience_steps: int
    min_reports: int = MIN_REPORTS

    def at(self, step: int) -> tuple[float, float]:
        """The predicted loss and its limit at a step."""
        return float(np.interp(step, self.steps, self.predicted)), float(np.interp(step, self.steps, self.limit))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LossBand":
        lists = {name: tuple(data[name]) for name in ("steps", "predicted", "limit")}
        return cls(**{**data, **lists})


@dataclass(frozen=True, kw_only=True)
class Breach:
    """The target's smoothed loss was above the limit from step `since` to step `step`, where it is `loss`."""

    since: int
    step: int
    loss: float
    predicted: float
    limit: float


class Smoother:
    """Exponential moving average of the log loss over steps, without bias at the start."""

    def __init__(self, time_constant_steps: float) -> None:
        self._time_constant = time_constant_steps
        self._step = 0
        self._sum = self._weight = 0.0

    def take(self, step: int, loss: float) -> float:
        """The smoothed loss after this point."""
        kept = math.exp(-(step - self._step) / self._time_constant)
        self._sum = kept * self._sum + (1 - kept) * math.log(max(loss, TINY))
        self._weight = kept * self._weight + (1 - kept)
        self._step = step
        return math.exp(self._sum / self._weight)


class Watch:
    """Follows a target's points in their order and detects that it was above its band for too long."""

    def __init__(self, band: LossBand) -> None:
        self._band = band
        self._smoother = Smoother(band.smoothing_steps)
        self._since: int | None = None
        self._num_above = 0

    def take(self, step: int, loss: float) -> Breach | None:
        """The breach, if there is one at this point."""
        smooth = self._smoother.take(step, loss)
        predicted, limit = self._band.at(step)
        if smooth <= limit:
            self._since, self._num_above = None, 0
            return None
        self._num_above += 1
        self._since = step if self._since is None else self._since
        if self._num_above < self._band.min_reports or step - self._since < self._band.patience_steps:
            return None
        return Breach(since=self._since, step=step, loss=smooth, predicted=predicted, limit=limit)


def first_breach(band: LossBand, points: Sequence[tuple[int, float]]) -> Breach | None:
    """Where a target with these points was, or would have been, halted."""
    watch = Watch(band)
    return next((breach for step, loss in points if (breach := watch.take(step, loss)) is not None), None)


def smoothed(points: Sequence[tuple[int, float]], time_constant_steps: float) -> list[tuple[int, float]]:
    """The points after a `Smoother`."""
    smoother = Smoother(time_constant_steps)
    return [(step, smoother.take(step, loss)) for step, loss in points]


def loss_band(
    curves: Sequence[LossCurve], *, size: float, rates: Sequence[float], speed: float = 1.0, trend: bool = True
) -> LossBand | None:
    """The band of a target of this size whose schedule has these rates; None where no curve has enough points.

    `speed` is the target's base rate over the proxies', where it is lower. `trend`: the loss is a line over log2 of
    the size where at least two sizes are known, but never above that of the largest size. Without a trend, only the
    largest size predicts. Proxies larger than the target are ignored.
    """
    curves = [curve for curve in curves if curve.size <= size and len(curve.points) >= 2 * MIN_REPORTS]
    sizes = sorted({curve.size for curve in curves})
    if not curves:
        return None
    if not trend:
        sizes = sizes[-1:]
        curves = [curve for curve in curves if curve.size == sizes[0]]
    horizon = min(len(curve.rates) for curve in curves)
    every = max(_spacing(curve.points) for curve in curves)
    smoothing_steps = max(SMOOTHING * horizon, 2 * every)
    steps = np.unique(np.linspace(1, len(rates), min(len(rates), MAX_POSITIONS)).round().astype(int))
    logs = np.array([_log_loss_at(curve, steps, rates, min(speed, 1.0), smoothing_steps) for curve in curves])
    own = np.array([curve.size for curve in curves])
    means = np.array([logs[own == value].mean(axis=0) for value in sizes])
    one_curve = _curve_deviation(curves, logs, own, smoothing_steps)
    one_size = _size_deviation(curves, smoothing_steps, one_curve)
    predicted, leverage = _extrapolate(means, np.array(sizes), size)
    predicted = np.minimum(predicted, means[-1])
    num_seeds = min(int((own == value).sum()) for value in sizes)
    variance = one_curve**2 * (1 + 1 / num_seeds) + one_size**2 * leverage / num_seeds
    margin = TOLERANCE + NUM_SIGMAS * math.sqrt(variance)
    limit = np.maximum(predicted + margin, means[-1] + TOLERANCE)
    return LossBand(
        steps=tuple(steps.tolist()),
        predicted=tuple(np.exp(predicted).tolist()),
        limit=tuple(np.exp(limit).tolist()),
        smoothing_steps=smoothing_steps,
        patience_steps=math.ceil(PATIENCE * min(horizon, len(rates))),
    )


def compared_steps(steps: np.ndarray, rates: Sequence[float], proxy_rates: Sequence[float], speed: float) -> np.ndarray:
    """The proxy's step, possibly a fraction, that each step of the target is compared with: see the module."""
    spent = np.concatenate([[0.0], np.cumsum(proxy_rates)])
    proxy_steps = np.arange(len(spent))
    by_rate_spent = np.interp(speed * np.cumsum(rates)[steps - 1], spent, proxy_steps)
    highest_later = np.maximum.accumulate(np.asarray(proxy_rates)[::-1])[::-1]  # constant until the rate falls for good
    own_rates = np.asarray(rates)[steps - 1] * (1 - 1e-9)
    by_rate_now = np.searchsorted(-highest_later, -own_rates, side="right")
    compared = np.minimum(by_rate_spent, by_rate_now)
    return np.minimum.accumulate(compared[::-1])[::-1]  # a rate that still warms up may not move the step back


def _log_loss_at(
    curve: LossCurve, steps: np.ndarray, rates: Sequence[float], speed: float, smoothing_steps: float
) -> np.ndarray:
    at, losses = zip(*smoothed(curve.points, smoothing_steps), strict=True)
    return np.interp(compared_steps(steps, rates, curve.rates, speed), at, np.log(losses))


def _spacing(points: Sequence[tuple[int, float]]) -> float:
    return float(np.median(np.diff([0, *(step for step, _ in points)])))


def _extrapolate(means: np.ndarray, sizes: np.ndarray, size: float) -> tuple[np.ndarray, float]:
    """Least-squares line over log2 of the size, at the target's, and its variance in units of one size's."""
    x = np.log2(sizes) - np.log2(sizes).mean()
    at = math.log2(size) - float(np.log2(sizes).mean())
    if len(sizes) < 2:
        return means[-1], 0.0
    slope = x @ (means - means.mean(axis=0)) / (x @ x)
    return means.mean(axis=0) + slope * at, 1 / len(sizes) + at**2 / float(x @ x)


def _curve_deviation(curves: Sequence[LossCurve], logs: np.ndarray, sizes: np.ndarray, smoothing_steps: float) -> float:
    """Standard deviation of one smoothed curve: from its scatter or from the seeds of one size, whichever is larger."""
    scatter = [_scatter(curve.points, smoothing_steps) for curve in curves]
    spreads = [logs[sizes == size].var(axis=0, ddof=1) for size in set(sizes.tolist()) if (sizes == size).sum() > 1]
    seeds = float(np.mean(spreads)) if spreads else 0.0
    return math.sqrt(max(SEEDS_OVER_SCATTER**2 * float(np.mean(scatter)), seeds))


def _size_deviation(curves: Sequence[LossCurve], smoothing_steps: float, one_curve: float) -> float:
    """The part that sizes do not share. They see the same batches and noise, so most of it cancels between them."""
    scatter = []
    for small, large in itertools.pairwise(sorted(curves, key=lambda curve: curve.size)):
        if small.size != large.size:
            if [step for step, _ in small.points] != [step for step, _ in large.points]:
                return one_curve
            pairs = zip(small.points, large.points, strict=True)
            ratio = [(step, below / max(above, TINY)) for (step, below), (_, above) in pairs]
            scatter.append(_scatter(ratio, smoothing_steps) / 2)
    return SEEDS_OVER_SCATTER * math.sqrt(float(np.mean(scatter))) if scatter else one_curve


def _scatter(points: Sequence[tuple[int, float]], smoothing_steps: float) -> float:
    """Variance of a smoothed curve that comes from the scatter of its points.

    It is measured by second differences of the log losses after the steep beginning: a smooth curve adds little to
    them.
    """
    kept = math.exp(-_spacing(points) / smoothing_steps)
    bends = np.diff(np.log([max(loss, TINY) for _, loss in points]), n=2)
    return float((bends[len(bends) // 3 :] ** 2).mean()) / 6 * (1 - kept) / (1 + kept)
