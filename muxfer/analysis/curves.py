"""Curves of one metric over one setting, a curve for each axis value: one shape, shifted along with the optimum.

Under μP the curves of all widths have one shape. It is rarely a parabola: flat on one side, a wall on the other. So no
parabola is assumed. The model of a row at u doublings of the axis, in grid steps x of the setting, is

    metric(x) = offset of the row + f(x - drift · u) + g_row(x) + noise

f is a parabola plus a smooth process of unknown roughness, an integrated Wiener process: the posterior mean is a cubic
smoothing spline (Wahba 1990, ch. 1; Rasmussen and Williams 2006, ch. 6.3). g_row is what a row has of its own, a Matérn
5/2 process. Noise may grow with the setting. Offsets and parabola have flat priors, so the likelihood is that of error
contrasts (REML); the variance of the noise is integrated out, which leaves Student's t. Drift, roughness, own shapes
and the growth of the noise are integrated over grids; the grid of the drift is refined until it resolves its posterior.

So one posterior gives the drift, the optimum of a row, and what one value loses against another.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muxfer.analysis.points import MAX_CELLS, Reduced, RowPoints, reduce
from muxfer.analysis.quantiles import TAIL, Mixture, t_quantile

ROUGHNESS = 10.0 ** np.arange(0, 6.1, 0.5)
"""Variances of the second derivative's white noise, in variances of a trial's noise per cubed step."""
OWN_SHAPE = np.array([0.0, 1.0, 10.0, 100.0, 1000.0])
"""Variances of what a row has of its own, in variances of a trial's noise."""
OWN_SHAPE_PRIOR = np.array([0.6, 0.2, 0.1, 0.05, 0.05])
GROWTH = np.array([0.0, 1.0, 2.0])
"""The noise's variance grows by these powers of two per step."""
GROWTH_PRIOR = np.array([0.6, 0.25, 0.15])
MAX_GROWTH = 20.0
LENGTH = 3.0
"""Length scale of a row's own shape, in steps."""
MAX_STEPS = 30
NUM_DRIFTS = 21
MAX_COMPONENTS = 200
NEGLIGIBLE = 9.0
"""Log posterior below the maximum from which on a drift does not matter."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of one trial on the curves' relative scale, and its degrees of freedom."""

    variance: float
    df: int

    @property
    def deviation(self) -> float:
        return math.sqrt(self.variance)

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval of one trial, by Student's t."""
        return t_quantile(self.df) * self.deviation


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and its 95 % interval; an end is None where nothing bounds it."""

    value: float
    low: float | None
    high: float | None


class Curves:
    """The posterior of all rows. `doublings` [R] are the rows' places along the axis, all equal where it has none."""

    def __init__(self, rows: Mapping[float, RowPoints], doublings: Mapping[float, float], *, paired: bool) -> None:
        self.axes = list(rows)
        max_cells = max(5, MAX_CELLS // len(rows))
        self.used = {axis: points.near_minimum(max_cells) for axis, points in rows.items()}
        places = [rows[axis].positions[self.used[axis]] for axis in self.axes]
        self.step = _grid_step(places)
        self.origin = float(np.median(np.concatenate(places)))
        self.shift = np.array([doublings[axis] for axis in self.axes])
        self.row = np.repeat(np.arange(len(places)), [len(part) for part in places])
        self.x = (np.concatenate(places) - self.origin) / self.step
        self.u = self.shift[self.row]
        self.own = _matern(self.x[:, None] - self.x) * (self.row[:, None] == self.row)
        scaled = [rows[axis].scaled(rows[axis].metrics[self.used[axis]]) for axis in self.axes]
        self.data = [self._reduced(scaled, growth, paired=paired) for growth in GROWTH]
        self.df = self.data[0].df + len(self.x) - len(self.axes) - 2

    @cached_property
    def noise(self) -> Noise | None:
        """That of one trial near the optimum; None: too few points to separate it from the shape."""
        if self.df <= 0:
            return None
        return Noise(variance=float(self._parts.weights @ self._parts.variance), df=self.df)

    def drift(self) -> Interval | None:
        """In positions per doubling. None where there is one row, or nothing bounds the drift on either side."""
        if len(self._drifts) < 2 or self.df <= 0:
            return None
        from scipy.interpolate import CubicSpline

        density = self._weights.sum(axis=(0, 1, 2))
        ends = density[[0, -1]] > math.exp(-NEGLIGIBLE / 2) * density.max()
        fine = np.linspace(self._drifts[0], self._drifts[-1], 4001)
        log_density = CubicSpline(self._drifts, np.log(np.maximum(density, 1e-300)))(fine)
        fine_density = np.exp(np.minimum(log_density - np.log(density.max()), 1.0))
        share = np.concatenate([[0.0], np.cumsum(fine_density[1:] + fine_density[:-1])])
        low, value, high = self.step * np.interp([TAIL, 0.5, 1 - TAIL], share / share[-1], fine)
        if ends.all():
            return None
        return Interval(value=float(value), low=None if ends[0] else float(low), high=None if ends[1] else float(high))

    def values(self, axis: float, positions: np.ndarray, contrasts: np.ndarray) -> Mixture:
        """Contrasts [k, m] (rows add up to 0) of the row's curve at positions [m]."""
        x = (positions - self.origin) / self.step
        parts, at = self._parts, self._place(axis, x)
        distances = at.t[:, :, None] - at.t[:, None, :]
        own = parts.own[:, None, None] * _matern(x[:, None] - x)
        prior = parts.roughness[:, None, None] * _wiener(distances) + own
        to_data = parts.roughness[:, None, None] * _wiener(at.t[:, :, None] - parts.t[:, None, :])
        to_data = to_data + parts.own[:, None, None] * _matern(x[:, None] - self.x) * at.same
        trend = np.zeros((*at.t.shape, len(self.axes) + 2))
        trend[:, :, at.row] = 1.0
        trend[:, :, -2], trend[:, :, -1] = at.t, at.t**2
        return self._posterior(contrasts @ prior @ contrasts.T, contrasts @ to_data, contrasts @ trend)

    def slopes(self, axis: float, positions: np.ndarray) -> Mixture:
        """Derivatives of the row's curve at positions [m], per step."""
        x = (positions - self.origin) / self.step
        parts, at = self._parts, self._place(axis, x)
        prior = np.eye(len(x)) * (parts.own * 5 / (3 * LENGTH**2))[:, None, None]
        distances = at.t[:, :, None] - parts.t[:, None, :]
        to_data = parts.roughness[:, None, None] * np.sign(distances) * distances**2 / 4
        to_data = to_data + parts.own[:, None, None] * _matern_slope(x[:, None] - self.x) * at.same
        trend = np.zeros((*at.t.shape, len(self.axes) + 2))
        trend[:, :, -2], trend[:, :, -1] = 1.0, 2 * at.t
        return self._posterior(prior, to_data, trend)

    def _reduced(self, scaled: list[np.ndarray], growth: float, *, paired: bool) -> Reduced:
        """All rows as one."""
        parts = []
        for i, y in enumerate(scaled):
            x = self.x[self.row == i]
            steps = x - x[np.argmin(np.nanmean(y, axis=1))]
            weights = 2.0 ** np.clip(-growth * steps, -MAX_GROWTH, MAX_GROWTH)
            parts.append(reduce(y, weights, paired=paired))
        covariance = np.zeros((len(self.x), len(self.x)))
        for i, part in enumerate(parts):
            covariance[np.ix_(self.row == i, self.row == i)] = part.covariance
        return Reduced(
            mean=np.concatenate([part.mean for part in parts]),
            covariance=covariance,
            sse=sum(part.sse for part in parts),
            df=sum(part.df for part in parts),
            log_density=sum(part.log_density for part in parts),
        )

    @cached_property
    def _searched(self) -> tuple[np.ndarray, np.ndarray]:
        """The grid of drifts in steps per doubling, and the weights [growth, own shape, roughness, drift]."""
        span = float(np.ptp(self.shift))
        if not span:
            return np.zeros(1), _normalized(self._log_likelihood(np.zeros(1)))
        low, high = (side * float(np.ptp(self.x)) / span for side in (-1, 1))
        for _ in range(40):
            drifts = np.linspace(low, high, NUM_DRIFTS)
            log_likelihood = self._log_likelihood(drifts)
            profile = log_likelihood.max(axis=(0, 1, 2))
            kept = np.flatnonzero(profile > profile.max() - NEGLIGIBLE)
            first, last = max(kept[0] - 1, 0), min(kept[-1] + 1, NUM_DRIFTS - 1)
            if 2 * (last - first) >= NUM_DRIFTS - 1:
                break
            low, high = drifts[first], drifts[last]
        return drifts, _normalized(log_likelihood)

    @property
    def _drifts(self) -> np.ndarray:
        return self._searched[0]

    @property
    def _weights(self) -> np.ndarray:
        return self._searched[1]

    def _trend(self, t: np.ndarray) -> np.ndarray:
        """The functions with flat priors at shifted places t [d, n]: an offset a row, t and t². [d, n, R + 2]."""
        trend = np.zeros((*t.shape, len(self.axes) + 2))
        trend[:, np.arange(len(self.x)), self.row] = 1.0
        trend[:, :, -2], trend[:, :, -1] = t, t**2
        return trend

    def _contrasts(self, t: np.ndarray) -> np.ndarray:
        """An orthonormal basis of what the trend leaves: [d, n, n - R - 2]."""
        q, _ = np.linalg.qr(self._trend(t), mode="complete")
        return np.asarray(q[:, :, len(self.axes) + 2 :])

    def _log_likelihood(self, drifts: np.ndarray) -> np.ndarray:
        """[growth, own shape, roughness, drift], with the prior; the noise's variance is integrated out."""
        shape = (len(GROWTH), len(OWN_SHAPE), len(ROUGHNESS), len(drifts))
        if len(self.x) <= len(self.axes) + 2:
            return np.zeros(shape)
        t = self.x - drifts[:, None] * self.u
        z = self._contrasts(t)
        zt = z.transpose(0, 2, 1)
        smooth = zt @ _wiener(t[:, :, None] - t[:, None, :]) @ z
        own = zt @ self.own @ z
        result = np.empty(shape)
        for i, data in enumerate(self.data):
            base = OWN_SHAPE[:, None, None, None] * own + zt @ data.covariance @ z
            lower = np.linalg.cholesky(base)
            inverse = np.linalg.inv(lower)
            values, vectors = np.linalg.eigh(inverse @ smooth @ inverse.swapaxes(-1, -2))
            y = (vectors.swapaxes(-1, -2) @ inverse @ (zt @ data.mean)[..., None])[..., 0]
            scale = 1 + ROUGHNESS[:, None] * np.maximum(values, 0.0)[..., None, :]  # [own, drift, roughness, contrast]
            sse = (y[..., None, :] ** 2 / scale).sum(axis=-1) + data.sse
            log_det = 2 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)[..., None]
            log_det = log_det + np.log(scale).sum(axis=-1)
            one = data.log_density - log_det / 2 - self.df / 2 * np.log(sse + 1e-30)
            result[i] = one.swapaxes(1, 2)
        return result + np.log(GROWTH_PRIOR[:, None] * OWN_SHAPE_PRIOR)[..., None, None]

    @cached_property
    def _parts(self) -> "_Parts":
        """The combinations that carry the posterior."""
        flat = self._weights.ravel()
        kept = np.argsort(-flat, kind="stable")[:MAX_COMPONENTS]
        kept = kept[flat[kept] > 1e-3 * flat[kept[0]]]
        growth, own, roughness, drift = np.unravel_index(kept, self._weights.shape)
        t = self.x - self._drifts[drift][:, None] * self.u
        noise = np.stack([data.covariance for data in self.data])[growth]
        mean = np.stack([data.mean for data in self.data])[growth]
        smooth = _wiener(t[:, :, None] - t[:, None, :])
        prior = ROUGHNESS[roughness][:, None, None] * smooth + OWN_SHAPE[own][:, None, None] * self.own
        covariance = prior + noise
        z = self._contrasts(t)
        zt = z.transpose(0, 2, 1)
        inverse = z @ np.linalg.solve(zt @ covariance @ z, zt)
        sse = np.einsum("ci,cij,cj->c", mean, inverse, mean) + np.array([data.sse for data in self.data])[growth]
        return _Parts(
            weights=flat[kept] / flat[kept].sum(),
            drift=self._drifts[drift],
            roughness=ROUGHNESS[roughness],
            own=OWN_SHAPE[own],
            t=t,
            mean=mean,
            covariance=covariance,
            inverse=inverse,
            trend=np.linalg.pinv(self._trend(t)).transpose(0, 2, 1),
            variance=np.maximum(sse, 0.0) / max(self.df, 1),
        )

    def _place(self, axis: float, x: np.ndarray) -> "_Place":
        row = self.axes.index(axis)
        return _Place(row=row, t=x - self._parts.drift[:, None] * self.shift[row], same=(self.row == row)[None, :])

    def _posterior(self, prior: np.ndarray, to_data: np.ndarray, trend: np.ndarray) -> Mixture:
        """Of quantities with this prior covariance [c, k, k], covariance to the data [c, k, n] and trend [c, k, p].

        Universal kriging: the weights of the cells reproduce the trend exactly and have the least variance.
        """
        parts = self._parts
        fixed = parts.trend @ trend.transpose(0, 2, 1)
        crossed = to_data.transpose(0, 2, 1)
        weights = parts.inverse @ (crossed - parts.covariance @ fixed) + fixed
        variance = np.diagonal(prior, axis1=1, axis2=2) - 2 * (weights * crossed).sum(axis=1)
        variance = variance + (weights * (parts.covariance @ weights)).sum(axis=1)
        scale = np.sqrt(np.maximum(variance, 0.0) * parts.variance[:, None])
        location = np.einsum("cnk,cn->ck", weights, parts.mean)
        return Mixture(weights=parts.weights, location=location, scale=np.maximum(scale, 1e-15), df=self.df)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """c combinations of drift, roughness, own shape and growth: one Student's t each, of weight `weights` [c]."""

    weights: np.ndarray
    drift: np.ndarray
    roughness: np.ndarray
    own: np.ndarray
    t: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    inverse: np.ndarray
    """The inverse of the covariance among the error contrasts, embedded in [c, n, n]."""
    trend: np.ndarray
    """Pseudo-inverse of the trend, [c, n, p]."""
    variance: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Positions of one row: its index, the shifted places [c, m], and which of the data are its own [1, n]."""

    row: int
    t: np.ndarray
    same: np.ndarray


def _grid_step(places: list[np.ndarray]) -> float:
    """The usual distance of neighboring positions; larger where a grid is so uneven that it has far more steps."""
    gaps = np.concatenate([np.diff(part) for part in places])
    return max(float(np.median(gaps)), float(np.ptp(np.concatenate(places))) / MAX_STEPS)


def _normalized(log_likelihood: np.ndarray) -> np.ndarray:
    weights = np.exp(log_likelihood - log_likelihood.max())
    return np.asarray(weights / weights.sum())


def _wiener(distance: np.ndarray) -> np.ndarray:
    """Generalized covariance of an integrated Wiener process: that of the cubic smoothing spline."""
    return np.abs(distance) ** 3 / 12


def _matern(distance: np.ndarray) -> np.ndarray:
    r = math.sqrt(5) / LENGTH * np.abs(distance)
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def _matern_slope(distance: np.ndarray) -> np.ndarray:
    """Derivative of the Matérn 5/2 covariance in its first argument."""
    a = math.sqrt(5) / LENGTH
    r = a * np.abs(distance)
    return np.asarray(-np.sign(distance) * a * r / 3 * (1 + r) * np.exp(-r))
