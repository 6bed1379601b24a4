"""The curve of a metric over a setting near its minimum, and how much the points say about it.

A parabola is fitted to one axis value's cells within two of the lowest one. A steep side far away then shapes nothing.
Where seeds show that the parabola does not fit, it is fitted to the cells within one.

Seeds are blocks: batches and noise are the same for every setting of a replicate. So what a replicate adds to all its
points alike is taken out first. Noise is relative to the row's best. It is pooled over the rows (`fit_curves`): one row
alone has too few points to measure it. The vertex's interval is Fieller's: the positions whose slope could be 0.

Legend: x position (log2 of the setting, or the setting), y metric over the row's level, N points used, V the inverse
of the Gram matrix of the demeaned x and x².
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muxfer.analysis.quantiles import f_tail, t_quantile

REACH = 2
"""How many settled neighbors on each side of the lowest cell shape its parabola."""
BASIN = 0.15
"""All but the nearest neighbors shape it only while they are at most this share above the lowest cell."""
DRIFT_POINTS = 121
"""The number of slopes, and of shifts of each, at which a drift's profile is computed before it is refined."""
MISFIT = 0.01
"""Level of the F-test for points that do not lie on a parabola, where replicates measure their noise."""


@dataclass(frozen=True, kw_only=True)
class RowPoints:
    """The settled cells of one axis value, ascending: positions [n], metrics [n, S], NaN where a replicate has none.

    Cells that diverged have no metrics: their positions are `diverged`. `level` is the reference of relative numbers.
    """

    positions: np.ndarray
    metrics: np.ndarray
    diverged: tuple[float, ...]
    level: float

    @property
    def means(self) -> np.ndarray:
        """[n], over the replicates that have one."""
        return np.nanmean(self.metrics, axis=1)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variance of one trial's relative metric about the curves, and its degrees of freedom."""

    variance: float
    df: int

    @property
    def quantile(self) -> float:
        """Student's t of a two-sided 95 % interval."""
        return t_quantile(self.df)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """y = mean + slope (x - center) + curvature (x - center)² - its own mean, through the points `used` (indices)."""

    points: RowPoints
    used: np.ndarray
    center: float
    mean: float
    basis_mean: np.ndarray
    """Means of (x, x²) over the points."""
    coefficients: np.ndarray
    """slope, curvature; relative to the level."""
    covariance: np.ndarray
    """V [2, 2], to be multiplied by the noise's variance."""
    num_points: int
    sse: float
    df: int
    misfit: float
    misfit_df: int
    """The part of `sse` that is the cells' means off the parabola."""

    def vertex(self) -> float:
        slope, curvature = self.coefficients
        return self.center - slope / (2 * curvature)

    def flatness(self, x: np.ndarray, noise: Noise) -> np.ndarray:
        """Squared slope of the curve at positions [...], in units of its variance: 0 at the vertex."""
        d = 2 * (x - self.center)
        slope = self.coefficients[0] + d * self.coefficients[1]
        v = self.covariance
        return slope**2 / (noise.variance * (v[0, 0] + 2 * d * v[0, 1] + d * d * v[1, 1]) + 1e-300)

    def vertex_interval(self, noise: Noise) -> tuple[float, float] | None:
        """Where the curve's slope could be 0 (Fieller 1954); None where the curvature is not surely above 0."""
        slope, curvature = self.coefficients
        q = noise.quantile**2 * noise.variance * self.covariance
        a = 4 * (curvature**2 - q[1, 1])
        b = 4 * (slope * curvature - q[0, 1])
        c = slope**2 - q[0, 0]
        if curvature <= 0 or a <= 0:
            return None
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))  # a > 0: the vertex is inside, so below 0 is rounding alone
        return self.center + (-b - root) / (2 * a), self.center + (-b + root) / (2 * a)

    def at(self, x: np.ndarray) -> np.ndarray:
        """Relative metric at positions [k]."""
        return self.mean + self._basis(x) @ self.coefficients

    def variance_at(self, x: np.ndarray) -> np.ndarray:
        """Variance of `at` at positions [k], in units of the noise's."""
        basis = self._basis(x)
        return 1 / self.num_points + np.einsum("ki,ij,kj->k", basis, self.covariance, basis)

    def contrast(self, x: float, other: float) -> tuple[float, float]:
        """y(x) - y(other) and its variance in units of the noise's."""
        basis = self._basis(np.array([x]))[0] - self._basis(np.array([other]))[0]
        return float(basis @ self.coefficients), float(basis @ self.covariance @ basis)

    def _basis(self, x: np.ndarray) -> np.ndarray:
        d = np.asarray(x, dtype=float) - self.center
        return np.stack([d, d * d], axis=1) - self.basis_mean


def fit_curves(rows: Mapping[float, RowPoints], *, paired: bool = True) -> tuple[dict[float, Curve], Noise | None]:
    """A curve for each row that has three points to fit, and the noise about all of them.

    Where no degree of freedom remains to separate it from the shape, replicates alone give it, or it is None. `paired`:
    the columns of the metrics are replicates that share their randomness; else their order means nothing.
    """
    curves = {axis: curve for axis, points in rows.items() if (curve := _fit_curve(points, REACH, paired=paired))}
    if _is_misfit(list(curves.values())):
        curves = {axis: curve for axis, points in rows.items() if (curve := _fit_curve(points, 1, paired=paired))}
    df = sum(curve.df for curve in curves.values())
    sse = sum(curve.sse for curve in curves.values())
    if df == 0:
        parts = [_replicate_scatter(points, paired=paired) for points in rows.values()]
        sse, df = sum(part for part, _ in parts), sum(part_df for _, part_df in parts)
    return curves, Noise(variance=sse / df, df=df) if df > 0 else None


def _replicate_scatter(points: RowPoints, *, paired: bool) -> tuple[float, int]:
    """Sum of squares, and its degrees of freedom, of replicates about the means of the cells near the lowest one.

    `paired`: less what each replicate adds to all of them; replicates that lack one of these cells are left out.
    """
    y = points.metrics[_near_minimum(points, REACH)] / points.level
    if not paired:
        counts = np.isfinite(y).sum(axis=1)
        return float(np.nansum((y - np.nanmean(y, axis=1, keepdims=True)) ** 2)), int((counts - 1).sum())
    y = y[:, np.isfinite(y).all(axis=0)]
    if y.shape[1] < 2:
        return 0.0, 0
    residual = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    return float((residual**2).sum()), (y.shape[0] - 1) * (y.shape[1] - 1)


def drift_interval(curves: Mapping[float, Curve], noise: Noise) -> tuple[float, float, float] | None:
    """The slope of the vertices over the keys, and its 95 % interval; None where the curves do not bound it.

    A profile interval, which is Fieller's for several curves at once. It holds the slopes for which some line of
    positions is as flat on its curves as Student's t allows, compared with the line that is flattest.
    """
    x = np.array(list(curves))
    x = x - x.mean()
    vertices = np.array([curve.vertex() for curve in curves.values()])
    value = float(x @ vertices / (x @ x))
    reach = max(float(np.ptp(curve.points.positions[curve.used])) for curve in curves.values())
    slopes = value + np.linspace(-1, 1, DRIFT_POINTS) * reach / min(float(np.ptp(x)) / 2, 1.0)

    def flatness(shifts: np.ndarray) -> np.ndarray:
        """The flatness of the line with each slope at each of its shifts: [slopes, shifts]."""
        at = slopes[:, None, None] * x + shifts[..., None]
        return np.sum([curve.flatness(at[..., i], noise) for i, curve in enumerate(curves.values())], axis=0)

    shifts = np.tile(vertices.mean() + np.linspace(-1, 1, DRIFT_POINTS) * reach, (len(slopes), 1))
    best = np.take_along_axis(shifts, flatness(shifts).argmin(axis=1)[:, None], axis=1)
    finer = best + np.linspace(-1, 1, 21) * (shifts[0, 1] - shifts[0, 0])
    least = flatness(finer).min(axis=1)
    excess = least - least.min() - noise.quantile**2
    inside = np.flatnonzero(excess <= 0)
    if inside[0] == 0 or inside[-1] == len(slopes) - 1:
        return None
    return value, _crossing(slopes, excess, int(inside[0]) - 1), _crossing(slopes, excess, int(inside[-1]))


def _crossing(x: np.ndarray, y: np.ndarray, i: int) -> float:
    """Where the line from point i to the next is 0."""
    return float(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))


def _is_misfit(curves: Sequence[Curve]) -> bool:
    """Whether the cells' means lie off their parabolas by more than replicates explain."""
    misfit_df = sum(curve.misfit_df for curve in curves)
    pure_df = sum(curve.df - curve.misfit_df for curve in curves)
    if misfit_df == 0 or pure_df == 0:
        return False
    misfit = sum(curve.misfit for curve in curves) / misfit_df
    pure = max(sum(curve.sse - curve.misfit for curve in curves) / pure_df, 1e-300)
    return f_tail(misfit_df, pure_df, misfit / pure) < MISFIT


def _fit_curve(points: RowPoints, reach: int, *, paired: bool) -> Curve | None:
    """Least squares with one offset a replicate; None with fewer than three cells."""
    used = _near_minimum(points, reach)
    if len(used) < 3:
        return None
    x = points.positions[used]
    y = points.metrics[used] / points.level
    known = np.isfinite(y)
    center = float(points.positions[used[np.argmin(points.means[used])]])
    d = (x - center)[:, None]
    basis = np.stack([np.broadcast_to(d, y.shape), np.broadcast_to(d * d, y.shape)])
    if not paired:  # one block: the offset is shared
        y, known, basis = y.reshape(-1, 1), known.reshape(-1, 1), basis.reshape(2, -1, 1)
    counts = known.sum(axis=0)
    blocks = counts > 0
    y, known, basis, counts = y[:, blocks], known[:, blocks], basis[:, :, blocks], counts[blocks]
    y_inner = _demeaned(np.where(known, y, 0.0), known, counts)
    inner = np.stack([_demeaned(np.where(known, part, 0.0), known, counts) for part in basis])
    gram = np.einsum("ins,jns->ij", inner, inner)
    if np.linalg.matrix_rank(gram) < 2:
        return None
    covariance = np.linalg.inv(gram)
    coefficients = covariance @ np.einsum("ins,ns->i", inner, y_inner)
    residual = np.where(known, y_inner - np.einsum("i,ins->ns", coefficients, inner), 0.0)
    num_points = int(counts.sum())
    cells = (len(used), -1)  # unpaired residuals are one column: back to a row a cell
    per_cell, off_parabola = known.reshape(cells).sum(axis=1), residual.reshape(cells).sum(axis=1)
    is_replicated = bool((per_cell > 1).any())
    return Curve(
        points=points,
        used=used,
        center=center,
        mean=float(y[known].mean()),
        basis_mean=np.array([part[known].mean() for part in basis]),
        coefficients=coefficients,
        covariance=covariance,
        num_points=num_points,
        sse=float((residual**2).sum()),
        df=num_points - len(counts) - 2,
        misfit=float((off_parabola**2 / per_cell).sum()) if is_replicated else 0.0,
        misfit_df=len(used) - 3 if is_replicated else 0,
    )


def _demeaned(values: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The known entries less their block's mean; 0 elsewhere."""
    return np.where(known, values - values.sum(axis=0) / counts, 0.0)


def _near_minimum(points: RowPoints, reach: int) -> np.ndarray:
    """Indices of the lowest cell and of its neighbors that shape the parabola. A diverged cell ends a side."""
    means = points.means
    best = int(np.argmin(means))
    ceiling = means[best] + BASIN * abs(points.level)
    used = [best]
    for side in (-1, 1):
        for distance in range(1, reach + 1):
            i = best + side * distance
            if not 0 <= i < len(means) or (distance > 1 and means[i] > ceiling):
                break
            low, high = sorted((points.positions[best], points.positions[i]))
            if any(low < place < high for place in points.diverged):
                break
            used.append(i)
    return np.array(sorted(used))
