"""A search over several settings at once: every setting as a line, the slice of each, and which of them matter.

All is drawn at the largest axis value, where the best is chosen: losses of other widths are not comparable. A better
setting is darker. Its rank decides the colour, not its loss: one exploding run must not make all others look alike.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import SettingResult
from muxfer.report.figures import style
from muxfer.report.format import METRIC, rows_csv, whole_powers

STRONG = 5  # This many of the best settings are drawn strong
SPREAD = 8  # A positive setting whose values span at least this factor is drawn over its log2


def parallel_figure(results: Sequence[SettingResult], names: Sequence[str], path_stem: Path) -> list[Path]:
    """A vertical axis for each name and one for the loss, and a line for each setting: STEM.png, .svg and .csv."""
    return style.draw_files(lambda: _parallel(results, names), path_stem, _csv(results))


def slices_figure(results: Sequence[SettingResult], names: Sequence[str], path_stem: Path) -> list[Path]:
    """The loss over each setting alone, in a small panel: STEM.png, .svg and .csv."""
    return style.draw_files(lambda: _slices(results, names), path_stem, _csv(results))


def importances_figure(importances: Mapping[str, float], path_stem: Path) -> list[Path]:
    """How much of the loss's variation each setting explains, largest first: STEM.png, .svg and .csv."""
    ranked = sorted(importances.items(), key=lambda item: (-item[1], item[0]))
    return style.draw_files(lambda: _importances(ranked), path_stem, rows_csv(["setting", "importance"], ranked))


def _csv(results: Sequence[SettingResult]) -> str:
    names = sorted({name for one in results for name in one.setting})
    rows = [[*(one.setting.get(name, "") for name in names), one.metric] for one in results]
    return rows_csv([*names, "metric"], rows)


@dataclass(frozen=True)
class Scale:
    """Places a setting's values between the lowest (0) and the highest (1), and names its ticks."""

    place: Callable[[Any], float]
    low: float
    high: float
    ticks: Mapping[float, str]

    def at(self, value: Any) -> float:
        return self.unit(self.place(value))

    def unit(self, position: float) -> float:
        return (position - self.low) / ((self.high - self.low) or 1.0)


def _scale(values: Sequence[Any]) -> Scale:
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if any(isinstance(value, str) for value in distinct):
        ticks = {float(index): style.brief(str(value), 12) for index, value in enumerate(distinct)}
        return Scale(lambda value: float(distinct.index(value)), 0.0, len(distinct) - 1.0, ticks)
    is_log = distinct[0] > 0 and distinct[-1] >= SPREAD * distinct[0]
    place: Callable[[Any], float] = math.log2 if is_log else float
    low, high = place(distinct[0]), place(distinct[-1])
    if len(distinct) <= 6:
        return Scale(place, low, high, {place(value): style.pretty(value) for value in distinct})
    if is_log:
        return Scale(place, low, high, {float(p): style.pretty(2.0**p) for p in whole_powers(low, high, most=7)})
    from matplotlib.ticker import MaxNLocator

    inside = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    return Scale(place, low, high, {tick: f"{tick:g}" for tick in inside})


def _losses(results: Sequence[SettingResult]) -> tuple[float, float]:
    """From the best loss to the 80th percentile. The far end is cut, because the choice is made at the near one."""
    metrics = sorted(one.metric for one in results if one.metric is not None)
    if not metrics:
        return 0.0, 1.0
    cut = metrics[int(0.8 * (len(metrics) - 1))]
    return metrics[0], cut if cut > metrics[0] else metrics[0] + (abs(metrics[0]) or 1.0)


def _colors(results: Sequence[SettingResult]) -> list[str]:
    """Colours by rank among the finished settings; grey for a setting without a loss."""
    num_finished = sum(one.metric is not None for one in results)
    ramp = style.palette(max(num_finished, 1))[::-1]
    return [*ramp[:num_finished], *[style.SOFT] * (len(results) - num_finished)]


def _parallel(results: Sequence[SettingResult], names: Sequence[str]) -> Any:
    figure = style.new_figure(max(7.6, 1.9 * (len(names) + 1)), 4.2)
    axes = figure.subplots()
    scales = {name: _scale([one.setting[name] for one in results if name in one.setting]) for name in names}
    low, high = _losses(results)
    for index in range(len(names) + 1):
        axes.plot([index, index], [0, 1], color=style.INK, linewidth=0.8, zorder=4)
    for index, (name, scale) in enumerate(scales.items()):
        for position, text in scale.ticks.items():
            _tick(axes, index, scale.unit(position), text)
        axes.text(index, 1.09, style.brief(name, 18), ha="center", va="bottom", fontweight="bold")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _tick(axes, len(names), 1 - share, f"{'≥ ' if share == 1 else ''}{low + share * (high - low):.4g}")
    axes.text(len(names), 1.09, METRIC, ha="center", va="bottom", fontweight="bold")
    if any(one.metric is None for one in results):
        axes.plot([len(names)], [-0.12], marker="x", color=style.SOFT, markersize=7, mew=1.8)
        _tick(axes, len(names), -0.12, "no loss")
    order = list(zip(results, _colors(results), strict=True))
    for rank, (one, color) in reversed(list(enumerate(order))):
        x, y = _smooth([scales[name].at(one.setting[name]) for name in names] + [_height(one, low, high)])
        strong = rank < STRONG and one.metric is not None
        width, alpha, dashes = (2.2, 1.0, "-") if strong else (0.9, 0.55, "-" if one.metric is not None else "--")
        axes.plot(x, y, color=color, zorder=3 if strong else 2, linewidth=width, alpha=alpha, linestyle=dashes)
    axes.set_xlim(-0.35, len(names) + 0.55)
    axes.set_ylim(-0.18 if any(one.metric is None for one in results) else -0.04, 1.18)
    axes.set_axis_off()
    return figure


def _height(one: SettingResult, low: float, high: float) -> float:
    """Where a loss stands on the last axis: the best at the top, so that the eye follows the lines upwards."""
    return -0.12 if one.metric is None else 1 - min((one.metric - low) / (high - low), 1.0)


def _tick(axes: Any, x: float, y: float, text: str) -> None:
    box = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
    axes.plot([x, x + 0.02], [y, y], color=style.INK, linewidth=0.8, zorder=4)
    axes.text(x + 0.035, y, text, va="center", fontsize=8.5, zorder=5, bbox=box)


def _smooth(heights: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line that is level at every axis and eased between two, so that lines through one point can be told apart."""
    x, y = [], []
    for index, (start, end) in enumerate(itertools.pairwise(heights)):
        for i in range(13):
            share = i / 12
            x.append(index + share)
            y.append(start + (end - start) * share * share * (3 - 2 * share))
    return x, y


def _slices(results: Sequence[SettingResult], names: Sequence[str]) -> Any:
    columns = style.num_columns(len(names))
    rows = math.ceil(len(names) / columns)
    figure = style.new_figure(1.0 + 2.9 * columns, 0.5 + 2.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    low, high = _losses(results)
    room = high - low
    top = high + 0.1 * room
    colored = list(zip(results, _colors(results), strict=True))
    for index, name in enumerate(names):
        axes = grid[index // columns][index % columns]
        scale = _scale([one.setting[name] for one in results if name in one.setting])
        for rank, (one, color) in reversed(list(enumerate(colored))):
            x = scale.at(one.setting[name])
            if one.metric is None:
                axes.plot([x], [top], marker="x", color=color, markersize=5, mew=1.2)
            else:
                marker, size = ("*", 14) if rank == 0 else ("o", 4.5)
                y = min(one.metric, high)
                mark = {"marker": marker, "markersize": size, "mec": style.PAPER, "mew": 0.6}
                axes.plot([x], [y], color=color, zorder=3 if rank == 0 else 2, **mark)
        axes.set_title(style.brief(name, 26))
        style.grid_behind(axes)
        axes.set_xticks([scale.unit(position) for position in scale.ticks], list(scale.ticks.values()))
        axes.set_xlim(-0.06, 1.06)
        axes.set_ylim(low - 0.06 * room, top + 0.08 * room)
    for index in range(len(names), rows * columns):
        grid[index // columns][index % columns].set_visible(False)
    figure.supylabel(METRIC, fontsize=10)
    return figure


def _importances(ranked: Sequence[tuple[str, float]]) -> Any:
    figure = style.new_figure(8.6, 0.4 + 0.32 * len(ranked))
    axes = figure.subplots()
    rows = range(len(ranked))[::-1]
    axes.barh(rows, [share for _, share in ranked], color=style.palette(3)[1], height=0.56)
    for row, (_, share) in zip(rows, ranked, strict=True):
        axes.text(share, row, f"  {100 * share:.0f} %", va="center")
    axes.set_yticks(rows, [style.brief(name, 28) for name, _ in ranked])
    axes.set_xlim(0, 1.12 * max([*(share for _, share in ranked), 1e-9]))
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=style.LINE, linewidth=0.8)
    return figure
