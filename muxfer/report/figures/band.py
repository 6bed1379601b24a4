"""The target's training loss in the band that its proxies predict: what the guard judges by, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.loss_band import LossBand, first_breach, smoothed
from muxfer.report.figures.style import INK, LINE, SOFT, draw_files, grid_behind, new_figure
from muxfer.report.format import rows_csv

TARGET, BEYOND = "#6a00a8", "#b3443f"
"""The target's curve, and where it stands above the limit."""


def band_figure(band: LossBand, points: Sequence[tuple[int, float]], path_stem: Path, *, title: str) -> list[Path]:
    """STEM.png, .svg and .csv: for each point (step, loss) of the target its loss, the smoothed loss and prediction."""
    smooth = dict(smoothed(points, band.smoothing_steps))
    rows = [(step, loss, smooth[step], *band.at(step)) for step, loss in points]
    table = rows_csv(["step", "train_loss", "smoothed", "predicted", "limit"], rows)
    return draw_files(lambda: _draw(band, points, title), path_stem, table)


def _draw(band: LossBand, points: Sequence[tuple[int, float]], title: str) -> Any:
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    axes.set_title(title)
    grid_behind(axes)
    axes.fill_between(band.steps, band.predicted, band.limit, color=LINE, alpha=0.7, linewidth=0, label="tolerated")
    axes.plot(band.steps, band.predicted, color=SOFT, linewidth=1.4, linestyle=(0, (5, 2)), label="the proxies predict")
    axes.plot(band.steps, band.limit, color=SOFT, linewidth=0.8)
    horizon = _horizon(band)
    if horizon < band.steps[-1]:
        axes.axvline(horizon, color=SOFT, linewidth=0.8, linestyle=":")
        note: dict[str, Any] = {"xytext": (4, -2), "textcoords": "offset points", "fontsize": 8, "color": SOFT}
        axes.annotate("the proxies end", (horizon, 1), xycoords=("data", "axes fraction"), va="top", **note)
    if points:
        _draw_target(axes, band, points)
    axes.set_xlim(0, band.steps[-1])
    axes.set_yscale("log")
    axes.set_ylim(*_limits(band, points))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.2g}" if f"{value:e}"[0] in "2345678" else "")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    figure.legend(loc="outside right upper", handlelength=1.8)
    return figure


def _draw_target(axes: Any, band: LossBand, points: Sequence[tuple[int, float]]) -> None:
    steps, losses = zip(*points, strict=True)
    axes.plot(steps, losses, color=TARGET, linewidth=0.7, alpha=0.45, label="target, each report")
    smooth = smoothed(points, band.smoothing_steps)
    axes.plot(steps, [loss for _, loss in smooth], color=TARGET, linewidth=2, label="target, smoothed")
    above = [(step, loss) for step, loss in smooth if loss > band.at(step)[1]]
    if above:
        style = {"linestyle": "none", "marker": "^", "markersize": 4, "color": BEYOND}
        axes.plot([step for step, _ in above], [loss for _, loss in above], **style, label="above the limit")
    if (breach := first_breach(band, points)) is not None:
        place: dict[str, Any] = {"xytext": (7, 7), "textcoords": "offset points", "color": INK, "fontsize": 9}
        where = (breach.step, breach.loss)
        axes.plot(*where, marker="s", markersize=8, color=BEYOND, markeredgecolor=INK, zorder=5)
        axes.annotate(f"too long above, step {breach.step}", where, **place)


def _horizon(band: LossBand) -> int:
    """The first step of the last prediction: after it the prediction is constant."""
    last = band.predicted[-1]
    return next(step for step, loss in zip(band.steps, band.predicted, strict=True) if loss == last)


def _limits(band: LossBand, points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Limits that hold every prediction and the target, but at most 3 times the highest prediction: it may explode."""
    losses = sorted(loss for _, loss in points) or [band.predicted[-1]]
    top = max(max(band.limit), min(losses[-1], 3 * max(band.limit)))
    return 0.92 * min(losses[0], min(band.predicted)), 1.08 * top
