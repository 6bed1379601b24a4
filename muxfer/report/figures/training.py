"""The training curves of a study: how each setting's loss fell, and where a run diverged."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import best_slice, grid_optimum
from muxfer.analysis.scattered import is_scattered
from muxfer.report.figures.style import INK, brief, draw_files, new_figure, num_columns, palette, pretty
from muxfer.report.format import rows_csv
from muxfer.trial import Outcome, Point, Record, Verdict

MAX_POINTS = 300
MAX_NAMED = 9  # A legend names at most this many settings, evenly spaced: more colours look alike
Curves = Mapping[str, Sequence[Point]]


def training_curves_figure(records: Sequence[Record], verdict: Verdict, points: Curves, path_stem: Path) -> list[Path]:
    """Training loss by step of the first replicate of each setting, one small panel for each axis value. The optimum is
    thick. Writes STEM.png, STEM.svg and STEM.csv (one row for each drawn point). Writes nothing where `points` (by
    trial key) hold no `train_loss`.
    """
    kept, curves = _thinned(records, verdict, points)
    if not any(curves.values()):
        return []
    return draw_files(lambda: _draw(kept, curves, verdict), path_stem, _csv(kept, curves))


def _thinned(records: Sequence[Record], verdict: Verdict, points: Curves) -> tuple[list[Record], Curves]:
    """The records that are drawn, and at most MAX_POINTS points of each."""
    scattered = is_scattered(records, verdict.axis, verdict.hp)
    proxies = [record for record in records if record.kind == "proxy"]
    kept = proxies if scattered else best_slice(records, verdict.axis, verdict.hp)
    first = min((record.replicate for record in kept), default=0)
    kept = [record for record in kept if record.replicate == first]
    curves = {r.key: [p for p in points.get(r.key, ()) if p.name == "train_loss"] for r in kept}
    return kept, {key: curve[:: math.ceil(len(curve) / MAX_POINTS) or 1] for key, curve in curves.items()}


def _csv(records: Sequence[Record], curves: Curves) -> str:
    names = sorted({name for record in records for name in record.setting})
    rows = [
        [*(record.setting.get(name, "") for name in names), record.replicate, point.step, point.value]
        for record in records
        for point in curves[record.key]
    ]
    return rows_csv([*names, "replicate", "step", "train_loss"], rows)


def _draw(records: Sequence[Record], curves: Curves, verdict: Verdict) -> Any:
    from matplotlib.lines import Line2D

    values_of_axis = sorted({float(record.setting[verdict.axis]) for record in records})
    hps = sorted({float(record.setting[verdict.hp]) for record in records})
    colors = dict(zip(hps, palette(len(hps)), strict=True))
    values = sorted(point.value for curve in curves.values() for point in curve)
    columns = num_columns(len(values_of_axis))
    rows = math.ceil(len(values_of_axis) / columns)
    figure = new_figure(1.4 + 2.9 * columns, 0.6 + 2.5 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, axis in zip(grid, values_of_axis, strict=False):
        best = grid_optimum(verdict, axis)
        for record in records:
            hp, curve = float(record.setting[verdict.hp]), curves[record.key]
            if float(record.setting[verdict.axis]) == axis and curve:
                x, y = [p.step for p in curve], [p.value for p in curve]
                axes.plot(x, y, color=colors[hp], linewidth=2.2 if hp == best else 0.8, zorder=3 if hp == best else 2)
                if record.outcome is Outcome.DIVERGED:
                    y_end = min(y[-1], values[int(0.98 * (len(values) - 1))])
                    axes.plot(x[-1:], [y_end], marker="x", color=colors[hp], markersize=6, mew=1.8, zorder=4)
        axes.set_title(f"{brief(verdict.axis, 20)} {axis:g}")
        axes.grid(axis="y")
        if values[0] > 0:
            axes.set_yscale("log")
            axes.set_ylim(0.93 * values[0], 1.1 * values[int(0.98 * (len(values) - 1))])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "23457" else "")
    for index in range(len(values_of_axis), len(grid)):
        grid[index].set_visible(False)
        grid[index - columns].tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("training loss", fontsize=10)
    named = hps[:: math.ceil(len(hps) / MAX_NAMED)]
    handles = [Line2D([], [], color=colors[hp], linewidth=1.8, label=pretty(hp)) for hp in reversed(named)]
    handles.append(Line2D([], [], color=INK, linewidth=2.6, label="optimum"))
    title = brief(verdict.hp, 20)
    figure.legend(handles=handles, loc="outside right upper", title=title, handlelength=1.4, alignment="left")
    return figure
