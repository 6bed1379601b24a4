"""Judging a study whose settings were drawn, not laid out on a grid: no two trials share a curve to be read from.

The same points are drawn at every axis value, so the question stays the one of a grid: what does the largest task lose
by using the setting that the smallest chose? The metric at each axis value is smoothed over all settings by a Gaussian
process (Rasmussen and Williams 2006, eq. 2.23), whose joint posterior gives the choice, the regret and its interval. A
drift needs a curve over one setting, so there is none here, and the verdict is `transfers` or `abstains`.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muxfer.analysis.cells import TOLERATED_REGRET, Cell, cell_of, percent, setting_number, shown
from muxfer.trial import Optimum, Outcome, Record, Regret, Setting, Verdict

MIN_SETTINGS = 6
"""So many finished settings at an axis value before a surface is drawn through them."""

Place = tuple[tuple[str, float | int | str], ...]
"""A setting without the axis, as a key."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Smoothed metrics of one axis value at its finished settings: relative mean [n] and covariance [n, n]."""

    places: tuple[Place, ...]
    mean: np.ndarray
    covariance: np.ndarray
    noise: float

    @property
    def choice(self) -> Place:
        return self.places[int(np.argmin(self.mean))]

    def regret(self, place: Place) -> tuple[float, float, float]:
        """Estimate and 95 % interval of what this setting loses against the best here, which is not known either."""
        i, best = self.places.index(place), int(np.argmin(self.mean))
        difference = self.mean[i] - self.mean
        variance = self.covariance[i, i] + np.diag(self.covariance) - 2 * self.covariance[i]
        spread = 1.96 * np.sqrt(np.maximum(variance, 0))
        estimate, low, high = difference[best], difference[best] - spread[best], (difference + spread).max()
        return max(float(estimate), 0.0), max(float(low), 0.0), max(float(high), 0.0)


def is_scattered(records: Sequence[Record], axis: str, hp: str) -> bool:
    """Whether the settings besides axis and `hp` take so many values that no curve over `hp` is left."""
    proxies = [record for record in records if record.kind == "proxy"]
    rests = {tuple(item for item in place_in(record.setting, axis) if item[0] != hp) for record in proxies}
    return len(rests) > 2 and 2 * len(rests) > len({place_in(record.setting, axis) for record in proxies})


def judge_scattered(records: Sequence[Record], *, axis: str, hp: str) -> Verdict:
    rows = rows_by_axis(records, axis)
    surfaces = {value: surface for value, row in rows.items() if (surface := fit_surface(row)) is not None}
    optimum = {value: _optimum(row, surfaces.get(value), hp) for value, row in rows.items()}
    regret = _regrets(rows, surfaces, hp)
    reading, why = _read(rows, surfaces, regret, axis)
    noise = [surface.noise for surface in surfaces.values()]
    return Verdict(
        verdict=reading,
        why=why,
        axis=axis,
        hp=hp,
        optimum=optimum,
        drift_per_doubling={"value": None, "low": None, "high": None},
        regret=regret,
        from_=min(rows) if reading == "transfers" else None,
        noise=math.sqrt(float(np.mean(np.square(noise)))) if noise else None,
    )


def best_scattered(records: Sequence[Record], *, axis: str) -> tuple[Setting, float, tuple[Record, ...]] | None:
    """The setting that is lowest at the largest axis value once smoothed: its mean metric and its records."""
    rows = rows_by_axis(records, axis)
    if not rows:
        return None
    row = rows[max(rows)]
    surface = fit_surface(row)
    finished = {place: cell for place, cell in row.items() if cell.mean is not None}
    if not finished:
        return None
    place = surface.choice if surface else min(finished, key=lambda place: (finished[place].mean, place))
    at_largest = (r for r in records if r.kind == "proxy" and r.setting.get(axis) == max(rows))
    same = [record for record in at_largest if place_in(record.setting, axis) == place]
    same.sort(key=lambda record: (record.metric, record.replicate))
    mean = finished[place].mean
    assert mean is not None
    return dict(same[0].setting), mean, tuple(same)


def rows_by_axis(records: Sequence[Record], axis: str) -> dict[float, dict[Place, Cell]]:
    """Cells by axis value, then by the rest of the setting, both in order."""
    groups: dict[tuple[float, Place], list[Record]] = {}
    for record in records:
        if record.kind == "proxy":
            groups.setdefault((setting_number(record, axis), place_in(record.setting, axis)), []).append(record)
    rows: dict[float, dict[Place, Cell]] = {}
    for (value, place), group in sorted(groups.items(), key=lambda item: repr(item[0])):
        rows.setdefault(value, {})[place] = cell_of(value, math.nan, group)
    return dict(sorted(rows.items()))


def fit_surface(row: Mapping[Place, Cell]) -> Surface | None:
    """None with fewer than MIN_SETTINGS finished settings."""
    finished = {place: cell for place, cell in row.items() if cell.mean is not None}
    if len(finished) < MIN_SETTINGS:
        return None
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    means = np.array([cell.mean for cell in finished.values()], dtype=float)
    level = abs(float(means.min())) or 1.0
    # A rate that nearly diverges lies far above all others; its rank is what counts, so it is drawn in.
    ceiling = np.median(means) + 3 * (np.median(means) - means.min() + 1e-12)
    y = np.minimum(means, ceiling) / level
    centre, scale = float(y.mean()), float(y.std()) or 1.0
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern(1.0, (0.3, 10.0), nu=2.5) + WhiteKernel(0.1, (1e-3, 1.0))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    features = _features(list(finished))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(features, (y - centre) / scale)
        mean, covariance = process.predict(features, return_cov=True)
    # predict() adds the white noise to its covariance: what is asked for is the surface below it
    white = float(process.kernel_.k2.noise_level)
    covariance = covariance - white * np.eye(len(features))
    return Surface(
        places=tuple(finished),
        mean=centre + scale * mean,
        covariance=scale**2 * covariance,
        noise=scale * math.sqrt(white),
    )


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


def place_in(setting: Setting, axis: str) -> Place:
    """A setting's place among those of its axis value."""
    return tuple(sorted((name, value) for name, value in setting.items() if name != axis))


def _optimum(row: Mapping[Place, Cell], surface: Surface | None, hp: str) -> Optimum:
    finished = {place: cell.mean for place, cell in row.items() if cell.mean is not None}
    if not finished:
        return Optimum(grid=None)
    best = min(finished, key=lambda place: (finished[place], place))
    return Optimum(grid=_value(best, hp), choice=_value(surface.choice if surface else best, hp))


def _regrets(
    rows: Mapping[float, Mapping[Place, Cell]], surfaces: Mapping[float, Surface], hp: str
) -> tuple[Regret, ...]:
    largest = max(rows, default=0.0)
    best = min((cell.mean for cell in rows.get(largest, {}).values() if cell.mean is not None), default=None)
    found = []
    for value, surface in surfaces.items():
        here = rows[largest].get(surface.choice)
        if value == largest or here is None or best is None:
            continue
        estimate = low = high = None
        if largest in surfaces and here.mean is not None:
            estimate, low, high = surfaces[largest].regret(surface.choice)
        chosen = _value(surface.choice, hp)
        relative = None if here.mean is None or not best else (here.mean - best) / abs(best)
        found.append(
            Regret(
                from_=value,
                to=largest,
                setting=chosen,
                relative=relative,
                choice=chosen,
                estimate=estimate,
                low=low,
                high=high,
            )
        )
    return tuple(found)


def _read(
    rows: Mapping[float, Mapping[Place, Cell]],
    surfaces: Mapping[float, Surface],
    regret: Sequence[Regret],
    axis: str,
) -> tuple[str, str]:
    if len(rows) < 2:
        held = f"every trial has {axis} {min(rows):g}" if rows else "no trial has settled"
        return "abstains", f"{held}: transfer needs at least two values of {axis}"
    for value, row in rows.items():
        if value not in surfaces:
            num_finished = sum(cell.outcome is Outcome.FINISHED for cell in row.values())
            why = f"{axis} {value:g} has {num_finished} finished settings: {MIN_SETTINGS} at least are needed"
            return "abstains", why
    smallest, largest = min(rows), max(rows)
    found = next((r for r in regret if r.from_ == smallest), None)
    subject = f"the best setting of {axis} {smallest:g} ({_said(surfaces[smallest].choice)})"
    if found is None:
        return "abstains", f"{subject} has no result at {axis} {largest:g}: run it there"
    if found.estimate is None or found.high is None:
        return "abstains", f"{subject} diverges at {axis} {largest:g}"
    cost = f"{subject} costs {percent(found.estimate)} (at most {percent(found.high)}) at {axis} {largest:g}"
    if all(r.high is not None and r.high <= TOLERATED_REGRET for r in regret):
        return "transfers", cost
    return "abstains", f"{cost}, more than the tolerated {100 * TOLERATED_REGRET:g} % cannot be excluded"


def _said(place: Place) -> str:
    return ", ".join(f"{name} {value if isinstance(value, str) else shown(value)}" for name, value in place)


def _value(place: Place, hp: str) -> float:
    return float(dict(place)[hp])
