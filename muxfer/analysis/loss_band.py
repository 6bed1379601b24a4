"""What the proxies' training losses say of the target's, step by step, and when the target has left it.

A target is the expensive run, and one that goes wrong shows it early: its loss stands where no proxy's stood. Which of
a proxy's steps a step of the target compares with depends on the rate alone. The latest one is taken that

- had spent no more of the rate: the sum of all rates up to it is at most the target's. So a longer warm-up shifts the
  comparison, and a schedule that is constant compares the same step after warm-up;
- stood at no lower a rate, once the proxy's rate falls: a lower rate lowers the loss by itself, so under a cosine
  schedule a longer target is compared at the same share of its steps, not at the same step.

A target that trains as its proxies did has by then done at least as much, at a rate that is no higher, so its loss is
at most theirs. That holds whether it is shorter, as long, or longer; beyond the proxies' horizon the last value stays.
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
"""In log loss: what no curve's noise shows, such as the luck of an initialization."""
NUM_SIGMAS = 3.0
SEEDS_OVER_SCATTER = 2.0
"""Runs of other seeds lie further apart than the scatter of their curves says, for they also part for long: 1.2 to 3.3
times in nine pairs on digits (2026-11)."""
PATIENCE = 0.1
"""A target is halted once its smoothed loss was above the limit for this share of the proxies' steps, or of its own
where they are fewer..."""
MIN_REPORTS = 5
"""... and for so many reports."""
TINY = 1e-300
"""A loss of 0 has no logarithm."""
MAX_POSITIONS = 400
"""At how many steps a band is kept; between them it is a straight line."""


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
    """What is predicted of a target: `predicted` and `limit` are losses, smoothed as `smoothed` does, at `steps`.

    Above the limit for longer than `patience_steps` (and `min_reports` reports) is too long.
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
    """The target's smoothed loss was above the limit from step `since` to step `step`, and stands at `loss` there."""

    since: int
    step: int
    loss: float
    predicted: float
    limit: float


class Smoother:
    """Exponential moving average of the log loss over steps, free of bias from the start."""

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
    """Follows a target's points in their order and says when it has been above its band for too long."""

    def __init__(self, band: LossBand) -> None:
        self._band = band
        self._smoother = Smoother(band.smoothing_steps)
        self._since: int | None = None
        self._num_above = 0

    def take(self, step: int, loss: float) -> Breach | None:
        """The breach, if this point makes it one."""
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
    smoother = Smoother(time_constant_steps)
    return [(step, smoother.take(step, loss)) for step, loss in points]


def loss_band(
    curves: Sequence[LossCurve], *, size: float, rates: Sequence[float], speed: float = 1.0, trend: bool = True
) -> LossBand | None:
    """The band of a target of this size whose schedule has these rates; None where the curves are too few to tell.

    `speed` is the target's base rate over the proxies', where it is lower. `trend`: the loss is a line over log2 of
    the size where at least two sizes are known, yet never above the largest one's; otherwise the largest one's alone
    is taken. Sizes beyond the target's have no say.
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
    common = _common(curves, logs, own, smoothing_steps)
    alone = _own(curves, smoothing_steps, common)
    predicted, leverage = _extrapolate(means, np.array(sizes), size)
    predicted = np.minimum(predicted, means[-1])
    num_seeds = min(int((own == value).sum()) for value in sizes)
    variance = common**2 * (1 + 1 / num_seeds) + alone**2 * leverage / num_seeds
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
    """The proxy's step, a fraction of one too, that each step of the target compares with: see the module."""
    spent = np.concatenate([[0.0], np.cumsum(proxy_rates)])
    proxy_steps = np.arange(len(spent))
    by_rate_spent = np.interp(speed * np.cumsum(rates)[steps - 1], spent, proxy_steps)
    to_come = np.maximum.accumulate(np.asarray(proxy_rates)[::-1])[::-1]  # flat until the rate falls for good
    still = np.asarray(rates)[steps - 1] * (1 - 1e-9)
    by_rate_now = np.searchsorted(-to_come, -still, side="right")
    found = np.minimum(by_rate_spent, by_rate_now)
    return np.minimum.accumulate(found[::-1])[::-1]  # a rate that still warms up may send it back: then it waits


def _log_loss_at(
    curve: LossCurve, steps: np.ndarray, rates: Sequence[float], speed: float, smoothing_steps: float
) -> np.ndarray:
    at, losses = zip(*smoothed(curve.points, smoothing_steps), strict=True)
    return np.interp(compared_steps(steps, rates, curve.rates, speed), at, np.log(losses))


def _spacing(points: Sequence[tuple[int, float]]) -> float:
    return float(np.median(np.diff([0, *(step for step, _ in points)])))


def _extrapolate(means: np.ndarray, sizes: np.ndarray, size: float) -> tuple[np.ndarray, float]:
    """Least-squares line over log2 of the size, at the target's; and the variance of that, in those of one size."""
    x = np.log2(sizes) - np.log2(sizes).mean()
    at = math.log2(size) - float(np.log2(sizes).mean())
    if len(sizes) < 2:
        return means[-1], 0.0
    slope = x @ (means - means.mean(axis=0)) / (x @ x)
    return means.mean(axis=0) + slope * at, 1 / len(sizes) + at**2 / float(x @ x)


def _common(curves: Sequence[LossCurve], logs: np.ndarray, sizes: np.ndarray, smoothing_steps: float) -> float:
    """Standard deviation of one smoothed curve, by its scatter or by the seeds of one size, whichever is larger."""
    scatter = [_scatter(curve.points, smoothing_steps) for curve in curves]
    spreads = [logs[sizes == size].var(axis=0, ddof=1) for size in set(sizes.tolist()) if (sizes == size).sum() > 1]
    seeds = float(np.mean(spreads)) if spreads else 0.0
    return math.sqrt(max(SEEDS_OVER_SCATTER**2 * float(np.mean(scatter)), seeds))


def _own(curves: Sequence[LossCurve], smoothing_steps: float, common: float) -> float:
    """The part of it that sizes do not share: they see the same batches and noise, so most cancels between them."""
    scatter = []
    for small, large in itertools.pairwise(sorted(curves, key=lambda curve: curve.size)):
        if small.size != large.size:
            if [step for step, _ in small.points] != [step for step, _ in large.points]:
                return common
            pairs = zip(small.points, large.points, strict=True)
            ratio = [(step, below / max(above, TINY)) for (step, below), (_, above) in pairs]
            scatter.append(_scatter(ratio, smoothing_steps) / 2)
    return SEEDS_OVER_SCATTER * math.sqrt(float(np.mean(scatter))) if scatter else common


def _scatter(points: Sequence[tuple[int, float]], smoothing_steps: float) -> float:
    """Variance that the scatter of a curve's points leaves in it smoothed.

    From second differences of the log losses, which a smooth curve hardly moves, past its steep beginning.
    """
    kept = math.exp(-_spacing(points) / smoothing_steps)
    bends = np.diff(np.log([max(loss, TINY) for _, loss in points]), n=2)
    return float((bends[len(bends) // 3 :] ** 2).mean()) / 6 * (1 - kept) / (1 + kept)
