"""Does the optimum stay put? The optimum at each axis value, and the regret of its choice at the largest.

Both are drawn with their intervals: a drift whose interval holds 0 is no drift, and a regret that may be 0 is none.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import TOLERATED_REGRET, best_value, finite
from muxfer.report.figures import style
from muxfer.report.figures.style import INK, LINE, MARKERS, PAPER, SOFT, brief, grid_behind, palette, pretty
from muxfer.report.format import rows_csv, whole_powers, with_interval
from muxfer.trial import Verdict

DODGE = 1.1  # The grid's best stands this factor to the left of the fitted one, so that both are seen where they agree

STABLE: dict[str, Any] = {"color": SOFT, "linestyle": ":", "marker": "_", "markersize": 9, "markeredgewidth": 1.8}
"""The edge of stability: a dash at each axis value, because a line needs two of them."""
FIELDS = ("grid", "choice", "fitted", "low", "high", "stable", "diverges")


def optimum_figure(verdict: Verdict, path_stem: Path) -> list[Path]:
    """Optimum and regret by axis value: STEM.png, .svg and .csv. Nothing with fewer than two optima."""
    if sum(optimum.grid is not None for optimum in verdict.optimum.values()) < 2:
        return []
    return style.draw_files(lambda: _draw(verdict), path_stem, _csv(verdict))


def _csv(verdict: Verdict) -> str:
    regrets = {regret.from_: regret for regret in verdict.regret}
    names = [f"best_{verdict.hp}" if name == "grid" else name for name in FIELDS]
    header = [verdict.axis, *names, "regret", "regret_fitted", "regret_low", "regret_high"]
    rows = []
    for axis, optimum in verdict.optimum.items():
        regret = regrets.get(axis)
        cost = (None,) * 4 if regret is None else (regret.relative, regret.estimate, regret.low, regret.high)
        rows.append([f"{axis:g}", *(getattr(optimum, name) for name in FIELDS), *cost])
    return rows_csv(header, rows)


def _draw(verdict: Verdict) -> Any:
    values = list(verdict.optimum)
    colors = dict(zip(values, palette(len(values)), strict=True))
    figure = style.new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_optima(left, verdict, colors)
    _draw_regrets(right, verdict, colors)
    for axes in (left, right):
        _name_axis(axes, values, verdict.axis)
    figure.legend(handles=_legend(verdict), loc="outside lower center", ncols=6, handlelength=1.6, columnspacing=1.4)
    return figure


def _draw_optima(axes: Any, verdict: Verdict, colors: Mapping[float, str]) -> None:
    log2_hp = verdict.log2_hp
    place: Callable[[float], float] = math.log2 if log2_hp else float
    axes.set_title(f"best {brief(verdict.hp, 24)}")
    grid_behind(axes)
    shown_y: list[float] = []
    for index, (axis, optimum) in enumerate(verdict.optimum.items()):
        color = colors[axis]
        if optimum.grid is not None:
            left = [axis / DODGE if axis > 0 else axis]
            axes.plot(left, [place(optimum.grid)], marker="*", markersize=14, color=color, mec=PAPER, zorder=4)
            shown_y.append(place(optimum.grid))
        if optimum.fitted is not None:
            y = place(optimum.fitted)
            inside = [end for end in (optimum.low, optimum.high) if finite(end) and (end > 0 or not log2_hp)]
            ends = [y, *map(place, inside)]  # an open end is drawn as far as the optimum itself
            axes.plot(
                [axis, axis], [min(ends), max(ends)], color=color, linewidth=2.6, solid_capstyle="round", zorder=3
            )
            axes.plot([axis], [y], marker=MARKERS[index % 10], markersize=7, color=color, mec=PAPER, zorder=5)
            shown_y += ends
        if optimum.diverges is not None:
            axes.plot([axis], [place(optimum.diverges)], marker="x", color=color, markersize=7, mew=1.8, zorder=3)
            shown_y.append(place(optimum.diverges))
    edges = _edges(verdict)
    stable = [place(edges[axis]) if axis in edges else math.nan for axis in verdict.optimum]
    axes.plot(list(verdict.optimum), stable, linewidth=1.2, zorder=2, **STABLE)
    shown_y += [y for y in stable if finite(y)]
    _draw_drift(axes, verdict, place)
    low, high = min(shown_y), max(shown_y)
    margin = 0.12 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    if log2_hp:
        powers = whole_powers(low - margin, high + margin)
        axes.set_yticks(powers, [pretty(2.0**power) for power in powers])


def _edges(verdict: Verdict) -> dict[float, float]:
    """The largest stable value of each axis value where a value above it diverged. Elsewhere the grid just ends."""
    diverging = {axis: optimum for axis, optimum in verdict.optimum.items() if optimum.diverges is not None}
    return {axis: optimum.stable for axis, optimum in diverging.items() if optimum.stable is not None}


def _draw_drift(axes: Any, verdict: Verdict, place: Callable[[float], float]) -> None:
    """The drift and its interval as lines through the middle of the fitted optima."""
    drift = verdict.drift_per_doubling
    bests = {axis: best_value(optimum) for axis, optimum in verdict.optimum.items() if axis > 0}
    places = {axis: place(best) for axis, best in bests.items() if best is not None}
    slope, low, high = (drift.get(name) for name in ("value", "low", "high"))
    if slope is None or len(places) < 2:
        return
    xs = [math.log2(axis) for axis in places]
    middle, level = sum(xs) / len(xs), sum(places.values()) / len(xs)
    x = [min(xs) + (max(xs) - min(xs)) * i / 20 for i in range(21)]
    doublings = [2.0**value for value in x]
    if finite(low) and finite(high):
        ends = [[level + end * (value - middle) for value in x] for end in (low, high)]
        axes.fill_between(doublings, *ends, color=SOFT, alpha=0.14, linewidth=0)
    axes.plot(doublings, [level + slope * (value - middle) for value in x], color=SOFT, linewidth=1.2, zorder=2)


def _draw_regrets(axes: Any, verdict: Verdict, colors: Mapping[float, str]) -> None:
    """Regrets in percent of the best loss at the largest axis value. A divergence there stands at the top."""
    axes.set_title(f"its regret at {brief(verdict.axis, 16)} {max(verdict.optimum):g}, %")
    grid_behind(axes)
    tolerated = 100 * TOLERATED_REGRET
    axes.axhline(tolerated, color=SOFT, linewidth=1.2, linestyle="--", zorder=2)
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=1)
    values = list(verdict.optimum)
    shown_y = [0.0, tolerated]
    for regret in verdict.regret:
        color = colors[regret.from_]
        if regret.relative is None:
            top = axes.get_xaxis_transform()
            axes.plot([regret.from_], [0.96], marker="x", color=color, markersize=8, mew=2, transform=top)
            continue
        value = regret.relative if regret.estimate is None else regret.estimate
        ends = [100 * end if finite(end) else 100 * value for end in (regret.low, regret.high)]
        axes.plot([regret.from_] * 2, ends, color=color, linewidth=2.6, solid_capstyle="round", zorder=3)
        marker = MARKERS[values.index(regret.from_) % 10]
        axes.plot([regret.from_], [100 * value], marker=marker, markersize=7, color=color, mec=PAPER, zorder=5)
        left = [regret.from_ / DODGE if regret.from_ > 0 else regret.from_]
        axes.plot(left, [100 * regret.relative], marker="*", markersize=14, color=color, mec=PAPER, zorder=4)
        shown_y += [100 * value, 100 * regret.relative, *ends]
    room = max(shown_y) - min(shown_y)
    axes.set_ylim(min(shown_y) - 0.06 * room, max(shown_y) + 0.1 * room)


def _name_axis(axes: Any, values: list[float], name: str) -> None:
    """Label the axis. Its doublings lie equally far apart where all values are positive."""
    if min(values) > 0:
        axes.set_xscale("log", base=2)
        ratio = (max(values) / min(values)) ** 0.12
        axes.set_xlim(min(values) / ratio, max(values) * ratio)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(brief(name))


def _legend(verdict: Verdict) -> list[Any]:
    from matplotlib.lines import Line2D

    bare: dict[str, Any] = {"color": INK, "linestyle": "none"}
    handles = [Line2D([], [], marker="*", markersize=11, label="best of the grid", **bare)]
    if any(optimum.fitted is not None for optimum in verdict.optimum.values()):
        highs = [one.high for one in verdict.optimum.values()] + [one.high for one in verdict.regret]
        fitted = with_interval("fitted", highs)
        handles.append(Line2D([], [], color=INK, linewidth=2.2, marker="o", markersize=6, label=fitted))
    if verdict.drift_per_doubling.get("value") is not None:
        handles.append(Line2D([], [], color=SOFT, linewidth=1.4, label="drift"))
    if any(optimum.diverges is not None for optimum in verdict.optimum.values()):
        handles.append(Line2D([], [], marker="x", markersize=6, mew=1.8, label="diverges", **bare))
    if _edges(verdict):
        handles.append(Line2D([], [], linewidth=1.4, label="largest stable", **STABLE))
    handles.append(Line2D([], [], color=SOFT, linewidth=1.4, linestyle="--", label="tolerated regret"))
    return handles
