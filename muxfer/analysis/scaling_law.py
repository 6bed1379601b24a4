"""Scaling laws from an isoFLOP study: how large a model, how much data and which loss a budget of FLOPs buys.

At each budget the loss over log size has one minimum: the budget's optimal size. The curve through the points is a
parabola; where the residuals of all budgets together show that the curves are lopsided (an F-test, pooled, because one
budget has too few points to tell) it is a cubic or a quartic. Noise is relative and pooled over the budgets. The
optima then give power laws in the budget (`muxfer.analysis.power_law`). A budget whose minimum is not bracketed by its
sizes, or does not curve beyond the noise, is left out with its reason; under three budgets are no law.

Legend: x log of the parameters less the budget's mean, [P] points of a budget, [R] draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from muxfer.analysis.isoflop_curve import (
    Polynomial,
    bootstrap_coefficients,
    fit_polynomials,
    minimum,
    pooled_variance,
    powers,
)
from muxfer.analysis.isoflop_points import Budget, Points, basin, grouped, lowest_losses, usable
from muxfer.analysis.power_law import Array, Interval, LogNoise, PowerLaw
from muxfer.errors import BadInput

MIN_BUDGETS = 3


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a budget buys by the laws: where they lie, with 95 % intervals."""

    flops: float
    params: Interval
    tokens: Interval
    loss: Interval
    fid: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        parts = {"params": self.params, "tokens": self.tokens, "loss": self.loss, "fid": self.fid}
        values = {name: part.value for name, part in parts.items() if part is not None}
        ends = {name: [part.low, part.high] for name, part in parts.items() if part is not None}
        return {"flops": self.flops, **values, "intervals": ends}


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """Every budget with its optimum, and the laws through the optima: `laws` is empty where `why` says why."""

    budgets: tuple[Budget, ...]
    laws: Mapping[str, PowerLaw] = field(default_factory=dict)
    """params, tokens, loss and, with FIDs, fid."""
    degree: int | None = None
    """Of the curves; None: the table held the optima themselves, one row a budget."""
    noise: float | None = None
    """Relative standard deviation of one loss about its curve; None: nothing tells."""
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> list[str]:
        return [f"{budget.flops:.3g} FLOPs: {budget.why}" for budget in self.budgets if budget.why]

    @property
    def kept(self) -> list[Budget]:
        return [budget for budget in self.budgets if not budget.why]


def fit_isoflop(points: Points) -> IsoflopFit:
    """Optima and laws of these points. BadInput where a number is none that a trained model can have."""
    rows, notes = usable(points)
    groups = grouped(rows)
    if len(groups) >= MIN_BUDGETS and all(len(group) == 1 for group in groups):
        return _of_optima(groups, notes)
    fit = _of_curves([basin(group) for group in groups], notes)
    if not groups:
        return replace(fit, why=f"none of the {len(points)} runs has a finite loss")
    if len(groups) < MIN_BUDGETS:
        told = ", ".join(f"{budget.flops:.3g}" for budget in fit.budgets)
        why = f"{len(groups)} budget{'s' * (len(groups) > 1)} ({told} FLOPs), a law needs {MIN_BUDGETS}: add others"
        return replace(fit, why=why)
    return fit


def predict(fit: IsoflopFit, flops: float) -> Prediction:
    """BadInput where the fit has no laws."""
    if fit.why:
        raise BadInput(f"nothing can be predicted at {flops:.3g} FLOPs: {fit.why}")
    if not (math.isfinite(flops) and flops > 0):
        raise BadInput(f"a budget of {flops:g} FLOPs: expected a number above 0")
    return Prediction(flops=flops, **{name: law.at(flops) for name, law in fit.laws.items()})


def _of_optima(groups: Sequence[Points], notes: Sequence[str]) -> IsoflopFit:
    """One row a budget: the rows are the optima, and only their scatter about the laws tells how sure those are."""
    budgets = []
    for row in groups:
        params, fid = float(row.params[0]), None if row.fid is None else float(row.fid[0])
        budgets.append(
            Budget(
                flops=float(row.flops[0]),
                points=row,
                used=np.array([True]),
                params=Interval(value=params, low=params, high=params),
                tokens=float(row.tokens[0]),
                loss=float(row.loss[0]),
                fid=fid,
            )
        )
    x = np.log([budget.flops for budget in budgets])
    columns = {name: [getattr(row, name)[0] for row in groups] for name in ("params", "tokens", "loss")}
    if groups[0].fid is not None:
        columns["fid"] = [math.nan if row.fid is None else row.fid[0] for row in groups]
    told = "one row a budget: the rows are taken for the optima"
    laws = {
        name: PowerLaw(log_flops=x, log_values=np.log(values), noise=None)
        for name, values in columns.items()
        if np.all(np.isfinite(values)) and min(values) > 0
    }
    return IsoflopFit(budgets=tuple(budgets), laws=laws, notes=(*notes, told))


def _of_curves(budgets: Sequence[Budget], notes: Sequence[str]) -> IsoflopFit:
    judged = [_with_enough_sizes(budget) for budget in budgets]
    able = [budget for budget in judged if not budget.why]
    fitted, degree = fit_polynomials([_column(budget, "loss") for budget in able])
    noise = pooled_variance(fitted)
    df = sum(c.df for c in fitted)
    found = iter(_with_optimum(budget, c, noise, df) for budget, c in zip(able, fitted, strict=True))
    judged = [budget if budget.why else next(found) for budget in judged]
    kept = [budget for budget in judged if not budget.why]
    laws: dict[str, PowerLaw] = {}
    why = ""
    if len(kept) < MIN_BUDGETS:
        why = f"{len(kept)} of {len(budgets)} budgets have an optimum, a law needs {MIN_BUDGETS}"
    else:
        laws = _laws(kept, fitted)
        fids = _fids(kept, laws["params"])
        if fids is not None:
            laws["fid"] = fids
            read = dict(zip(map(id, kept), np.exp(fids.log_values), strict=True))
            judged = [budget if budget.why else replace(budget, fid=float(read[id(budget)])) for budget in judged]
    return IsoflopFit(
        budgets=tuple(judged),
        laws=laws,
        degree=degree,
        noise=None if noise is None else math.sqrt(noise),
        why=why,
        notes=tuple(notes),
    )


def _with_enough_sizes(budget: Budget) -> Budget:
    num_sizes = len(np.unique(budget.points.params))
    few = f"{num_sizes} size{'s' * (num_sizes > 1)}, a parabola needs at least 3"
    return budget if num_sizes >= 3 else replace(budget, why=few)


def _column(budget: Budget, name: str) -> tuple[Array, Array, float]:
    """Sizes and values of the rows that shape the curve and have one, and the center that all curves of it share."""
    params, values = budget.points.params[budget.used], getattr(budget.points, name)[budget.used]
    there = np.isfinite(values) & (values > 0)
    return params[there], values[there], float(np.log(params).mean())


def _with_optimum(budget: Budget, loss: Polynomial, noise: float | None, df: int) -> Budget:
    """The curve's minimum between sizes that measured more on both sides, or why there is none."""
    from scipy.special import stdtrit

    budget = replace(budget, curve=loss)
    measured, sizes, _ = lowest_losses(budget.points)
    x = np.log(budget.points.params[budget.used]) - loss.center
    grid = np.linspace(x[0], x[-1], 801)
    lowest = int(np.argmin(loss.value(grid)))
    if lowest == 0 or measured == 0:
        return replace(budget, why="the loss is lowest at the smallest size: add smaller ones")
    if lowest == len(grid) - 1 or measured == len(sizes) - 1:
        return replace(budget, why="the loss is lowest at the largest size: add larger ones")
    vertex = float(minimum(loss.coefficients[None], grid[lowest])[0])
    second = float(loss.value(vertex, derivative=2))
    half = 0.0
    if noise is not None:
        t = float(stdtrit(df, 0.975))
        if second <= t * math.sqrt(noise * loss.spread(vertex, derivative=2)):
            return replace(budget, why="the loss does not curve by more than the noise: spread the sizes wider")
        half = t * math.sqrt(noise * loss.spread(vertex, derivative=1)) / second
    log_params = vertex + loss.center
    params = Interval(value=math.exp(log_params), low=math.exp(log_params - half), high=math.exp(log_params + half))
    tokens = math.exp(float(_log_tokens(budget, np.array([vertex]))[0][0]))
    return replace(budget, params=params, tokens=tokens, loss=float(loss.value(vertex)))


def _log_tokens(budget: Budget, x: Array) -> tuple[Array, Array]:
    """Log of the tokens at x, and its slope: -1 under C = 6ND, bent where multiply-accumulates are counted."""
    at = np.log(budget.points.params[budget.used])
    num = min(3, len(np.unique(at)))
    coefficients = np.linalg.pinv(powers(at - at.mean(), num)) @ np.log(budget.points.tokens[budget.used])
    return powers(x, num) @ coefficients, powers(x, num, 1) @ coefficients


def _laws(kept: Sequence[Budget], fitted: Sequence[Polynomial]) -> dict[str, PowerLaw]:
    noise = pooled_variance(fitted)
    copies, noises = (None, None) if noise is None else bootstrap_coefficients(fitted, seed=0)
    own, drawn = [], []
    for budget in kept:
        place = next(i for i, c in enumerate(fitted) if c is budget.curve)
        loss = fitted[place]
        at = math.log(budget.params.value if budget.params else math.nan) - loss.center
        own.append(_logs(budget, loss.coefficients[None], np.array([at]), np.array([noise or 0.0])))
        if copies is not None and noises is not None:
            drawn.append(_logs(budget, copies[place], minimum(copies[place], at), noises))
    log_flops = np.log([budget.flops for budget in kept])
    df = sum(c.df for c in fitted)
    return {
        name: _law(log_flops, [logs[name] for logs in own], [logs[name] for logs in drawn], df)
        for name in ("params", "tokens", "loss")
    }


def _law(log_flops: Array, own: Sequence[Array], drawn: Sequence[Array], df: int) -> PowerLaw:
    """From logs and variances [2, 1] of each budget and of its copies [2, R]; no copies: no noise is known."""
    logs, variances = np.stack(own)[:, :, 0].T
    noise = None
    if drawn:
        draws, draw_variances = np.stack(drawn).transpose(1, 2, 0)
        noise = LogNoise(variances=variances, df=df, draws=draws, draw_variances=draw_variances)
    return PowerLaw(log_flops=log_flops, log_values=logs, noise=noise)


def _logs(budget: Budget, coefficients: Array, x: Array, noise: Array) -> dict[str, Array]:
    """Logs of size, tokens and loss at the minima x [M] of curves [M, K], each above its variance: [2, M]."""
    loss = budget.curve
    assert loss is not None
    second, value = (np.sum(coefficients * powers(x, loss.num, order), axis=1) for order in (2, 0))
    spread = noise * loss.spread(x, derivative=1) / second**2
    log_tokens, slope = _log_tokens(budget, x)
    with np.errstate(invalid="ignore"):
        log_loss = np.log(value)
    return {
        "params": np.stack([x + loss.center, spread]),
        "tokens": np.stack([log_tokens, slope**2 * spread]),
        "loss": np.stack([log_loss, noise * loss.spread(x) / value**2]),
    }


def _fids(kept: Sequence[Budget], sizes: PowerLaw) -> PowerLaw | None:
    """The law of the FID at the sizes where the loss is lowest, not where the FID is. None where a budget lacks it."""
    if any(budget.points.fid is None for budget in kept):
        return None
    columns = [_column(budget, "fid") for budget in kept]
    if any(len(np.unique(params)) < 3 for params, _, _ in columns):
        return None
    fitted, _ = fit_polynomials(columns, highest=2)
    noise = pooled_variance(fitted)
    copies, noises = (None, None) if noise is None else bootstrap_coefficients(fitted, seed=1)
    own, drawn = [], []
    for i, c in enumerate(fitted):
        x, spread = sizes.log_values[i : i + 1] - c.center, np.zeros(1)
        if sizes.noise is not None:
            spread = sizes.noise.variances[i : i + 1]
        own.append(_log_of(c, c.coefficients[None], x, np.array([noise or 0.0]), spread))
        if copies is not None and noises is not None and sizes.noise is not None:
            where = sizes.noise.draws[:, i] - c.center
            drawn.append(_log_of(c, copies[i], where, noises, sizes.noise.draw_variances[:, i]))
    return _law(sizes.log_flops, own, drawn, sum(c.df for c in fitted))


def _log_of(c: Polynomial, coefficients: Array, x: Array, noise: Array, spread: Array) -> Array:
    """Log of the value at x [M], itself uncertain by `spread` [M], above its variance: [2, M]."""
    value, slope = (np.sum(coefficients * powers(x, c.num, order), axis=1) for order in (0, 1))
    with np.errstate(invalid="ignore"):
        return np.stack([np.log(value), (noise * c.spread(x) + slope**2 * spread) / value**2])
