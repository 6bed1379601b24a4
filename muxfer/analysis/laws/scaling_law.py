"""Scaling laws from an isoFLOP study: how large a model, how much data and which loss a budget of FLOPs buys.

At each budget the loss over log size has one minimum: the budget's optimal size. The curve through the points is a
parabola. It is a cubic or a quartic where the residuals show that the curves are lopsided: an F-test, pooled over the
budgets because one budget has too few points. Noise is relative and pooled over the budgets.

The optima then give power laws in the budget (`muxfer.analysis.laws.power_law`). A budget is left out, with its reason,
where its sizes do not bracket the minimum or the curve does not bend beyond the noise. Under three budgets give no law.

Legend: x log of the parameters less the budget's mean, [P] points of a budget, [R] draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from muxfer.analysis.laws.isoflop_curve import Polynomial, bootstrap, fit_polynomials, minimum, pooled_variance, powers
from muxfer.analysis.laws.isoflop_points import Budget, Points, basin, by_budget, usable
from muxfer.analysis.laws.power_law import Array, Interval, LogNoise, PowerLaw
from muxfer.analysis.quantiles import t_quantile
from muxfer.errors import BadInput

MIN_BUDGETS = 3


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a budget buys by the laws: the laws' own values, with 95 % intervals."""

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
    """Every budget with its optimum, and the laws through the optima: `laws` is empty where `why` gives a reason."""

    budgets: tuple[Budget, ...]
    laws: Mapping[str, PowerLaw] = field(default_factory=dict)
    """params, tokens, loss and, with FIDs, fid."""
    degree: int | None = None
    """The degree of the curves; None: the table held the optima themselves, one row a budget."""
    noise: float | None = None
    """Relative standard deviation of one loss about its curve; None: unknown."""
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> list[str]:
        return [f"{budget.flops:.3g} FLOPs: {budget.why}" for budget in self.budgets if budget.why]

    @property
    def kept(self) -> list[Budget]:
        return [budget for budget in self.budgets if not budget.why]


def fit_isoflop(points: Points) -> IsoflopFit:
    """Optima and laws of these points. BadInput where a number is impossible for a trained model."""
    rows, notes = usable(points)
    groups = by_budget(rows)
    if len(groups) >= MIN_BUDGETS and all(len(group) == 1 for group in groups):
        return _fit_optima(groups, notes)
    fit = _fit_curves([basin(group) for group in groups], notes)
    if not groups:
        return replace(fit, why=f"none of the {len(points)} runs has a finite loss")
    if len(groups) < MIN_BUDGETS:
        budgets = ", ".join(f"{budget.flops:.3g}" for budget in fit.budgets)
        why = f"{len(groups)} budget{'s' * (len(groups) > 1)} ({budgets} FLOPs), a law needs {MIN_BUDGETS}: add others"
        return replace(fit, why=why)
    return fit


def predict(fit: IsoflopFit, flops: float) -> Prediction:
    """The laws at one budget. BadInput where the fit has no laws, or the budget is no number above 0."""
    if fit.why:
        raise BadInput(f"nothing can be predicted at {flops:.3g} FLOPs: {fit.why}")
    if not (math.isfinite(flops) and flops > 0):
        raise BadInput(f"a budget of {flops:g} FLOPs: expected a number above 0")
    return Prediction(flops=flops, **{name: law.at(flops) for name, law in fit.laws.items()})


def _fit_optima(groups: Sequence[Points], notes: Sequence[str]) -> IsoflopFit:
    """One row a budget: the rows are the optima, and their scatter about the laws is the only noise."""
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
    log_flops = np.log([budget.flops for budget in budgets])
    columns = {name: [getattr(row, name)[0] for row in groups] for name in ("params", "tokens", "loss")}
    if groups[0].fid is not None:
        columns["fid"] = [math.nan if row.fid is None else row.fid[0] for row in groups]
    laws = {
        name: PowerLaw(log_flops=log_flops, log_values=np.log(values), noise=None)
        for name, values in columns.items()
        if np.all(np.isfinite(values)) and min(values) > 0
    }
    note = "one row a budget: the rows are taken for the optima"
    return IsoflopFit(budgets=tuple(budgets), laws=laws, notes=(*notes, note))


def _fit_curves(budgets: Sequence[Budget], notes: Sequence[str]) -> IsoflopFit:
    """Several sizes a budget: the optima are the minima of the curves."""
    budgets = [_with_enough_sizes(budget) for budget in budgets]
    curves, degree = fit_polynomials([budget.column("loss") for budget in budgets if not budget.why])
    noise, df = pooled_variance(curves), sum(c.df for c in curves)
    remaining = iter(curves)
    budgets = [budget if budget.why else _with_optimum(budget, next(remaining), noise, df) for budget in budgets]
    kept = [budget for budget in budgets if not budget.why]
    laws: dict[str, PowerLaw] = {}
    why = ""
    if len(kept) < MIN_BUDGETS:
        why = f"{len(kept)} of {len(budgets)} budgets have an optimum, a law needs {MIN_BUDGETS}"
    else:
        laws = _laws(kept, curves)
        if (fid_law := _fid_law(kept, laws["params"])) is not None:
            laws["fid"] = fid_law
            fids = iter(np.exp(fid_law.log_values))
            budgets = [budget if budget.why else replace(budget, fid=float(next(fids))) for budget in budgets]
    return IsoflopFit(
        budgets=tuple(budgets),
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


def _with_optimum(budget: Budget, loss: Polynomial, noise: float | None, df: int) -> Budget:
    """The curve's minimum between sizes that measured more on both sides, or why there is none."""
    budget = replace(budget, curve=loss)
    measured, sizes = budget.points.lowest()
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
        t = t_quantile(df)
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


def _laws(kept: Sequence[Budget], curves: Sequence[Polynomial]) -> dict[str, PowerLaw]:
    """The laws of size, tokens and loss. `curves` holds those of the budgets that are left out too: they show noise."""
    noise, copies = pooled_variance(curves) or 0.0, bootstrap(curves, seed=0)
    measured, drawn = [], []
    for budget in kept:
        place = next(i for i, c in enumerate(curves) if c is budget.curve)
        loss = curves[place]
        x = math.log(budget.params.value if budget.params else math.nan) - loss.center
        measured.append(_optimum_logs(budget, loss, loss.coefficients[None], np.array([x]), np.array([noise])))
        if copies is not None:
            own = copies.coefficients[place]
            drawn.append(_optimum_logs(budget, loss, own, minimum(own, x), copies.variances))
    log_flops = np.log([budget.flops for budget in kept])
    df = sum(c.df for c in curves)
    return {
        name: _power_law(log_flops, [logs[name] for logs in measured], [logs[name] for logs in drawn], df)
        for name in ("params", "tokens", "loss")
    }


def _optimum_logs(budget: Budget, loss: Polynomial, coefficients: Array, x: Array, noise: Array) -> dict[str, Array]:
    """Logs of size, tokens and loss at the minima x [M] of curves [M, K], each above its variance: [2, M]."""
    second, value = (np.sum(coefficients * powers(x, loss.num_coefficients, order), axis=1) for order in (2, 0))
    spread = noise * loss.spread(x, derivative=1) / second**2
    log_tokens, slope = _log_tokens(budget, x)
    with np.errstate(invalid="ignore"):
        log_loss = np.log(value)
    return {
        "params": np.stack([x + loss.center, spread]),
        "tokens": np.stack([log_tokens, slope**2 * spread]),
        "loss": np.stack([log_loss, noise * loss.spread(x) / value**2]),
    }


def _fid_law(kept: Sequence[Budget], sizes: PowerLaw) -> PowerLaw | None:
    """The law of the FID at the sizes where the loss is lowest, not where the FID is. None where a budget lacks it."""
    if any(budget.points.fid is None for budget in kept):
        return None
    columns = [budget.column("fid") for budget in kept]
    if any(len(np.unique(params)) < 3 for params, _, _ in columns):
        return None
    curves, _ = fit_polynomials(columns, highest=2)
    noise, copies = pooled_variance(curves) or 0.0, bootstrap(curves, seed=1)
    measured, drawn = [], []
    for i, c in enumerate(curves):
        x, spread = sizes.log_values[i : i + 1] - c.center, np.zeros(1)
        if sizes.noise is not None:
            spread = sizes.noise.variances[i : i + 1]
        measured.append(_log_value(c, c.coefficients[None], x, np.array([noise]), spread))
        if copies is not None and sizes.noise is not None:
            x = sizes.noise.draws[:, i] - c.center
            drawn.append(_log_value(c, copies.coefficients[i], x, copies.variances, sizes.noise.draw_variances[:, i]))
    return _power_law(sizes.log_flops, measured, drawn, sum(c.df for c in curves))


def _log_value(c: Polynomial, coefficients: Array, x: Array, noise: Array, spread: Array) -> Array:
    """Log of the value at x [M], itself uncertain by `spread` [M], above its variance: [2, M]."""
    value, slope = (np.sum(coefficients * powers(x, c.num_coefficients, order), axis=1) for order in (0, 1))
    with np.errstate(invalid="ignore"):
        return np.stack([np.log(value), (noise * c.spread(x) + slope**2 * spread) / value**2])


def _power_law(log_flops: Array, measured: Sequence[Array], drawn: Sequence[Array], df: int) -> PowerLaw:
    """From logs and variances [2, 1] of each budget and of its copies [2, R]; no copies: the noise is unknown."""
    logs, variances = np.stack(measured)[:, :, 0].T
    noise = None
    if drawn:
        draws, draw_variances = np.stack(drawn).transpose(1, 2, 0)
        noise = LogNoise(variances=variances, df=df, draws=draws, draw_variances=draw_variances)
    return PowerLaw(log_flops=log_flops, log_values=logs, noise=noise)
