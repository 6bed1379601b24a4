"""Judging a study whose settings were drawn and not laid out on a grid: no two trials lie on one curve.

The same points are drawn at every axis value, so the question is that of a grid: what does the largest task lose by
using the setting that the smallest chose? The metric at each axis value is smoothed over all settings by a Gaussian
process (Rasmussen and Williams 2006, eq. 2.23). Its joint posterior gives the choice, the regret and its interval. A
drift needs a curve over one setting, so there is none here, and the verdict is `transfers` or `abstains`.
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muxfer.analysis.cells import (
    TOLERATED_REGRET,
    Best,
    Cell,
    cell_of,
    percent,
    relative_excess,
    setting_number,
    shown,
)
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict, VerdictKind

MIN_SETTINGS = 6
"""The fewest finished settings at an axis value that a surface is fitted to."""

Place = tuple[tuple[str, float | int | str], ...]
"""A setting without the axis, as a key."""
Rows = Mapping[float, Mapping[Place, Cell]]
"""Cells by axis value, then by the rest of the setting, both in order."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Smoothed metrics of one axis value at its finished settings: relative mean [n] and covariance [n, n]."""

    places: tuple[Place, ...]
    mean: np.ndarray
    covariance: np.ndarray
    noise: float

    @property
    def choice(self) -> Place:
        """The place with the lowest smoothed metric."""
        return self.places[int(np.argmin(self.mean))]

    def regret(self, place: Place) -> tuple[float, float, float]:
        """Estimate and 95 % interval of what this place loses against the best one, which is uncertain too."""
        i, best = self.places.index(place), int(np.argmin(self.mean))
        difference = self.mean[i] - self.mean
        variance = self.covariance[i, i] + np.diag(self.covariance) - 2 * self.covariance[i]
        spread = 1.96 * np.sqrt(np.maximum(variance, 0))
        estimate, low, high = difference[best], difference[best] - spread[best], (difference + spread).max()
        return max(float(estimate), 0.0), max(float(low), 0.0), max(float(high), 0.0)


def is_scattered(records: Sequence[Record], axis: str, hp: str) -> bool:
    """Whether the settings besides axis and `hp` take so many values that no curve over `hp` remains."""
    places = {place_in(record.setting, axis) for record in records if record.kind == "proxy"}
    others = {tuple(item for item in place if item[0] != hp) for place in places}
    return len(others) > 2 and 2 * len(others) > len(places)


def judge_scattered(records: Sequence[Record], *, axis: str, hp: str) -> Verdict:
    """As `muxfer.analysis.transferability.judge`, for drawn settings."""
    rows = rows_by_axis(records, axis)
    surfaces = {value: surface for value, row in rows.items() if (surface := fit_surface(row)) is not None}
    regret = _regrets(rows, surfaces, hp)
    kind, why = _weigh(rows, surfaces, regret, axis)
    noise = [surface.noise for surface in surfaces.values()]
    return Verdict(
        verdict=kind,
        why=why,
        axis=axis,
        hp=hp,
        optimum={value: _optimum(row, surfaces.get(value), hp) for value, row in rows.items()},
        drift_per_doubling={"value": None, "low": None, "high": None},
        regret=regret,
        from_=min(rows) if kind is VerdictKind.TRANSFERS else None,
        noise=math.sqrt(float(np.mean(np.square(noise)))) if noise else None,
    )


def best_scattered(records: Sequence[Record], *, axis: str) -> Best | None:
    """The setting with the lowest smoothed metric at the largest axis value. None: nothing finished there."""
    rows = rows_by_axis(records, axis)
    largest = max(rows, default=None)
    if largest is None or (best := _best_place(rows[largest])) is None:
        return None
    surface = fit_surface(rows[largest])
    place = surface.choice if surface else best
    mean = rows[largest][place].mean
    assert mean is not None
    at_largest = (r for r in records if r.kind == "proxy" and r.setting.get(axis) == largest)
    return Best.of((r for r in at_largest if place_in(r.setting, axis) == place), metric=mean)


def rows_by_axis(records: Sequence[Record], axis: str) -> Rows:
    """The proxies among the records as cells."""
    groups: dict[tuple[float, Place], list[Record]] = {}
    for record in records:
        if record.kind == "proxy":
            groups.setdefault((setting_number(record, axis), place_in(record.setting, axis)), []).append(record)
    rows: dict[float, dict[Place, Cell]] = {}
    for (value, place), group in sorted(groups.items(), key=lambda item: repr(item[0])):
        rows.setdefault(value, {})[place] = cell_of(value, math.nan, group)
    return dict(sorted(rows.items()))


def place_in(setting: Setting, axis: str) -> Place:
    """A setting's place among those of its axis value."""
    return tuple(sorted((name, value) for name, value in setting.items() if name != axis))


def fit_surface(row: Mapping[Place, Cell]) -> Surface | None:
    """The row smoothed by a Gaussian process. None with fewer than MIN_SETTINGS finished settings."""
    finished = {place: cell for place, cell in row.items() if cell.mean is not None}
    if len(finished) < MIN_SETTINGS:
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    means = np.array([cell.mean for cell in finished.values()], dtype=float)
    level = abs(float(means.min())) or 1.0
    # A rate that nearly diverges lies far above all others. Only its rank matters, so it is clipped.
    ceiling = np.median(means) + 3 * (np.median(means) - means.min() + 1e-12)
    y = np.minimum(means, ceiling) / level
    center, scale = float(y.mean()), float(y.std()) or 1.0
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(1.0, (0.3, 10.0), nu=2.5) + WhiteKernel(0.1, (1e-3, 1.0))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    features = _features(list(finished))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(features, (y - center) / scale)
        mean, covariance = process.predict(features, return_cov=True)
    # predict() adds the white noise to its covariance. The surface has none.
    white = float(process.kernel_.k2.noise_level)
    covariance = covariance - white * np.eye(len(features))
    return Surface(
        places=tuple(finished),
        mean=center + scale * mean,
        covariance=scale**2 * covariance,
        noise=scale * math.sqrt(white),
    )


def one_value_reason(axis_values: Collection[float], axis: str) -> str:
    """Why fewer than two axis values are no evidence of transfer; empty: there are two or more."""
    if len(axis_values) > 1:
        return ""
    present = f"every trial has {axis} {min(axis_values):g}" if axis_values else "no trial has settled"
    return f"{present}: transfer needs at least two values of {axis}"


def _features(places: Sequence[Place]) -> np.ndarray:
    """Settings as points of a unit cube; log2 of what spans more than a factor of eight."""
    columns = []
    for name in dict(places[0]):
        values = [dict(place)[name] for place in places]
        if any(isinstance(value, str) for value in values):
            names = sorted(set(map(str, values)))
            column = np.array([names.index(str(value)) for value in values], dtype=float)
        else:
            column = np.array(values, dtype=float)
            if column.min() > 0 and column.max() > 8 * column.min():
                column = np.log2(column)
        width = column.max() - column.min()
        columns.append((column - column.min()) / width if width else np.zeros_like(column))
    return np.stack(columns, axis=1)


def _best_place(row: Mapping[Place, Cell]) -> Place | None:
    """The place with the lowest measured mean."""
    finished = {place: cell.mean for place, cell in row.items() if cell.mean is not None}
    return min(finished, key=lambda place: (finished[place], place), default=None)


def _optimum(row: Mapping[Place, Cell], surface: Surface | None, hp: str) -> Optimum:
    best = _best_place(row)
    if best is None:
        return Optimum(grid=None)
    return Optimum(grid=_value(best, hp), choice=_value(surface.choice if surface else best, hp))


def _regrets(rows: Rows, surfaces: Mapping[float, Surface], hp: str) -> tuple[Regret, ...]:
    largest = max(rows, default=0.0)
    best = min((cell.mean for cell in rows.get(largest, {}).values() if cell.mean is not None), default=None)
    regrets = []
    for value, surface in surfaces.items():
        here = rows[largest].get(surface.choice)
        if value == largest or here is None or best is None:
            continue
        estimate = low = high = None
        if largest in surfaces and here.mean is not None:
            estimate, low, high = surfaces[largest].regret(surface.choice)
        chosen = _value(surface.choice, hp)
        regrets.append(
            Regret(
                from_=value,
                to=largest,
                setting=chosen,
                relative=None if here.mean is None else relative_excess(here.mean, best),
                choice=chosen,
                estimate=estimate,
                low=low,
                high=high,
            )
        )
    return tuple(regrets)


def _weigh(
    rows: Rows, surfaces: Mapping[float, Surface], regrets: Sequence[Regret], axis: str
) -> tuple[VerdictKind, str]:
    """The verdict and the sentence that says why."""
    if reason := one_value_reason(rows, axis):
        return VerdictKind.ABSTAINS, reason
    for value, row in rows.items():
        if value not in surfaces:
            num_finished = sum(cell.outcome is Outcome.FINISHED for cell in row.values())
            why = f"{axis} {value:g} has {num_finished} finished settings: {MIN_SETTINGS} at least are needed"
            return VerdictKind.ABSTAINS, why
    smallest, largest = min(rows), max(rows)
    regret = next((r for r in regrets if r.from_ == smallest), None)
    subject = f"the best setting of {axis} {smallest:g} ({_place_text(surfaces[smallest].choice)})"
    if regret is None:
        return VerdictKind.ABSTAINS, f"{subject} has no result at {axis} {largest:g}: run it there"
    if regret.estimate is None or regret.high is None:
        return VerdictKind.ABSTAINS, f"{subject} diverges at {axis} {largest:g}"
    cost = f"{subject} costs {percent(regret.estimate)} (at most {percent(regret.high)}) at {axis} {largest:g}"
    if all(r.high is not None and r.high <= TOLERATED_REGRET for r in regrets):
        return VerdictKind.TRANSFERS, cost
    why = f"{cost}, more than the tolerated {100 * TOLERATED_REGRET:g} % cannot be excluded"
    return VerdictKind.ABSTAINS, why


def _place_text(place: Place) -> str:
    return ", ".join(f"{name} {value if isinstance(value, str) else shown(value)}" for name, value in place)


def _value(place: Place, hp: str) -> float:
    return float(dict(place)[hp])
