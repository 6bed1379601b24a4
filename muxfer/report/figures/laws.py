"""The figure of an isoFLOP study: a curve of loss over size for each budget, and the laws through their minima.

A budget without an optimum has a broken curve and no star. The laws have their 95 % band as far as they predict, so
that the reader sees what an extrapolation rests on.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from muxfer.analysis.laws.isoflop_points import Budget
from muxfer.analysis.laws.parametric_law import ParametricLaw
from muxfer.analysis.laws.scaling_law import IsoflopFit, Prediction
from muxfer.report.figures.style import INK, MARKERS, PAPER, SOFT, brief, draw_files, grid_behind, new_figure, palette
from muxfer.report.format import rows_csv

COLUMNS = ("flops", "params", "tokens", "loss", "fitted", "used", "optimal_params", "optimal_loss", "left_out")


def laws_figure(
    fit: IsoflopFit,
    path_stem: Path,
    *,
    title: str,
    parametric: ParametricLaw | None = None,
    prediction: Prediction | None = None,
) -> list[Path]:
    """STEM.png, STEM.svg, and STEM.csv with a row for each trained model."""
    return draw_files(lambda: _laws(fit, title, parametric, prediction), path_stem, points_csv(fit))


def points_csv(fit: IsoflopFit) -> str:
    """One row for each trained model, by budget and size: its loss, and its budget's curve and optimum."""
    rows = []
    for budget in fit.budgets:
        points = budget.points
        fitted = [""] * len(points) if budget.curve is None else budget.curve.at_params(points.params)
        optimum = [None if budget.params is None else budget.params.value, budget.loss]
        for i in range(len(points)):
            own = [float(column[i]) for column in (points.flops, points.params, points.tokens, points.loss)]
            rows.append([*own, fitted[i], "yes" if budget.used[i] else "", *optimum, budget.why])
    return rows_csv(COLUMNS, rows)


def _laws(fit: IsoflopFit, title: str, parametric: ParametricLaw | None, prediction: Prediction | None) -> Any:
    figure = new_figure(11.4, 5.2, wspace=0.05)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1])
    curves, sizes = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    losses = figure.add_subplot(grid[1, 1], sharex=sizes)
    colors = palette(len(fit.budgets))
    _draw_curves(curves, fit, colors)
    curves.set_title(brief(title, 60))
    for axes, name in ((sizes, "params"), (losses, "loss")):
        _draw_law(axes, fit, name, colors, parametric, prediction)
    _log_ticks(curves.xaxis, curves.get_xlim(), _count)
    _log_ticks(sizes.xaxis, sizes.get_xlim(), _power_of_ten)
    _log_ticks(sizes.yaxis, sizes.get_ylim(), _count)
    sizes.set_ylabel("optimal parameters")
    sizes.tick_params(labelbottom=False, which="both")
    losses.set_ylabel("loss there")
    losses.set_xlabel("FLOPs")
    handles = _legend(fit, colors, parametric, prediction)
    figure.legend(handles=handles, loc="outside right upper", handlelength=1.8, labelspacing=0.6)
    return figure


def _draw_curves(axes: Any, fit: IsoflopFit, colors: list[str]) -> None:
    shown = [float(loss) for budget in fit.budgets for loss in budget.points.loss[budget.used]] or [0.0]
    room = (max(shown) - min(shown)) or 1.0
    top = max(shown) + 0.06 * room
    axes.set_ylim(min(shown) - 0.06 * room, top)
    axes.set_xscale("log")
    grid_behind(axes)
    for i, (budget, color) in enumerate(zip(fit.budgets, colors, strict=True)):
        points, marker = budget.points, MARKERS[i % len(MARKERS)]
        inside = points.loss <= top
        style = {"color": color, "linestyle": "none", "clip_on": False, "zorder": 3}
        axes.plot(points.params[inside], points.loss[inside], marker=marker, markersize=4.5, markeredgewidth=0, **style)
        above = {**style, "marker": "^", "markersize": 7, "transform": axes.get_xaxis_transform()}
        axes.plot(points.params[~inside], [0.985] * int(np.sum(~inside)), **above)
        if budget.curve is not None:
            sizes = points.params[budget.used]
            at = np.geomspace(sizes.min(), sizes.max(), 200)
            line = (0, (4, 2)) if budget.why else "-"
            axes.plot(at, budget.curve.at_params(at), color=color, linewidth=1.5, linestyle=line)
        if budget.params is not None and len(points) > 1:
            star = {"marker": "*", "markersize": 12, "color": color, "markeredgecolor": PAPER, "zorder": 5}
            axes.plot([budget.params.value], [budget.loss], linestyle="none", **star)
    axes.set_xlabel("parameters")
    axes.set_ylabel("validation loss")


def _draw_law(
    axes: Any,
    fit: IsoflopFit,
    name: str,
    colors: list[str],
    parametric: ParametricLaw | None,
    prediction: Prediction | None,
) -> None:
    axes.set_xscale("log")
    if name == "params":
        axes.set_yscale("log")
    grid_behind(axes)
    flops = [budget.flops for budget in fit.budgets] + ([prediction.flops] if prediction else [])
    if not flops:
        return
    at = np.geomspace(min(flops) / 1.3, max(flops) * 1.3, 60)
    if law := fit.laws.get(name):
        band = [law.at(float(c)) for c in at]
        axes.fill_between(at, [b.low for b in band], [b.high for b in band], color=SOFT, alpha=0.22, linewidth=0)
        axes.plot(at, [b.value for b in band], color=INK, linewidth=1.3)
    if parametric is not None:
        optima = [parametric.optimum(float(c)) for c in at]
        y = [params if name == "params" else loss for params, _, loss in optima]
        axes.plot(at, y, color=SOFT, linewidth=1.1, linestyle=(0, (4, 3)))
    for i, (budget, color) in enumerate(zip(fit.budgets, colors, strict=True)):
        if budget.params is None:
            continue
        value = budget.params.value if name == "params" else budget.loss
        if name == "params":
            axes.plot([budget.flops] * 2, [budget.params.low, budget.params.high], color=color, linewidth=1.3, zorder=3)
        axes.plot([budget.flops], [value], marker=MARKERS[i % len(MARKERS)], markersize=5.5, color=color, zorder=4)
    if prediction is not None:
        at_budget = prediction.params if name == "params" else prediction.loss
        axes.plot([prediction.flops] * 2, [at_budget.low, at_budget.high], color=INK, linewidth=1.3, zorder=3)
        bare = {"marker": "*", "markersize": 13, "color": PAPER, "markeredgecolor": INK, "zorder": 5}
        axes.plot([prediction.flops], [at_budget.value], linestyle="none", **bare)


def _log_ticks(axis: Any, limits: tuple[float, float], written: Callable[[float], str]) -> None:
    """Ticks at powers of ten, and at multiples of them where those are too few."""
    from matplotlib.ticker import LogLocator, NullFormatter

    decades = math.log10(limits[1] / limits[0])
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: written(value))
    axis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _power_of_ten(value: float) -> str:
    """10¹⁷ for 1e17, 3·10¹⁷ for 3e17."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10**exponent)
    power = f"10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return power if digit == 1 else f"{digit}·{power}"


def _legend(
    fit: IsoflopFit, colors: list[str], parametric: ParametricLaw | None, prediction: Prediction | None
) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=color, marker=MARKERS[i % len(MARKERS)], markersize=5, label=_named(budget))
        for i, (budget, color) in enumerate(zip(fit.budgets, colors, strict=True))
    ]
    bare: dict[str, Any] = {"color": INK, "linestyle": "none"}
    if any(budget.curve is not None and not budget.why for budget in fit.budgets):
        handles.append(Line2D([], [], marker="*", markersize=11, label="optimum", **bare))
    if fit.laws:
        handles.append(Line2D([], [], color=INK, linewidth=1.3, label="power law"))
        handles.append(Patch(facecolor=SOFT, alpha=0.22, label="95 % interval"))
    if parametric is not None:
        handles.append(Line2D([], [], color=SOFT, linewidth=1.1, linestyle=(0, (4, 3)), label="parametric law"))
    if prediction is not None:
        hollow = {**bare, "color": PAPER, "markeredgecolor": INK}
        handles.append(Line2D([], [], marker="*", markersize=11, label="predicted", **hollow))
    return handles


def _named(budget: Budget) -> str:
    return f"{budget.flops:.2g} FLOPs{', left out' if budget.why else ''}"
