"""The figure of a coordinate check: the checked parametrization beside its control, a row of panels for each measure.

Every line is divided by its value at the smallest size and by its expected slope. So a right line is flat, and the
tolerance is one wedge for all. Failing lines are drawn strong, and the worst one is named.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muxfer.mup.slopes import TOLERANCE, CoordinateCheck, Line
from muxfer.report.figures.style import INK, LINE, draw_files, new_figure

ROLE_COLORS = {"input": "#3f8f6b", "hidden": "#3b6fb6", "readout": "#c4552d", "finite": "#a4679f", "": "#8a8f98"}
"""Colours by role. Grey is a module of several parameters."""
WEDGE = "#eef0f2"
ROWS = {"change": "change of outputs", "output_at_init": "outputs at initialization", "update": "first updates"}


def coordinate_figure(panels: Sequence[CoordinateCheck], path_stem: Path, *, title: str) -> list[Path]:
    """The checked parametrization, and its control where there is one, as STEM.png and STEM.svg."""
    return draw_files(lambda: _coordinates(panels, title), path_stem)


def _coordinates(panels: Sequence[CoordinateCheck], title: str) -> Any:
    figure = new_figure(2.4 + 3.2 * len(panels), 8.4, wspace=0.06)
    grid = figure.subplots(len(ROWS), len(panels), squeeze=False, sharex="col", sharey="row")
    for row, (measure, label) in enumerate(ROWS.items()):
        drawn = [_relative(_lines(check, measure), check.sizes) for check in panels]
        _limit(grid[row][0], [value for lines in drawn for _, values in lines for value in values], measure, panels[0])
        for column, check in enumerate(panels):
            axes = grid[row][column]
            _draw(axes, drawn[column], check, measure)
            if row == 0:
                seeds = f"{check.seeds} seed{'s' if check.seeds > 1 else ''}"
                axes.set_title(f"{check.parametrization}: {check.verdict} ({seeds})", pad=10)
            if row == len(ROWS) - 1:
                axes.set_xlabel(check.axis)
        grid[row][0].set_ylabel(f"{label}{f', step {panels[0].steps}' if measure == 'change' else ''}")
    spacing: dict[str, Any] = {"ncols": 3 * len(panels), "handlelength": 1.5, "columnspacing": 1.3}
    figure.legend(handles=_legend(panels), loc="outside lower center", **spacing)
    figure.align_ylabels()
    figure.suptitle(f"{title}\nrelative to {panels[0].axis} {min(panels[0].sizes)} and the slope expected", fontsize=10)
    return figure


def _lines(check: CoordinateCheck, measure: str) -> list[Line]:
    """The lines with a slope; of `change` only the last step. Failed lines come last, so they are drawn on top."""
    lines = [line for line in check.lines if line.measure == measure and line.slope is not None]
    if measure == "change":
        lines = [line for line in lines if line.step == check.steps]
    return sorted(lines, key=lambda line: (not line.passed, line.role != ""))


def _relative(lines: Sequence[Line], sizes: Sequence[int]) -> list[tuple[Line, list[float]]]:
    first, *_ = ordered = sorted(sizes)
    ratios = [
        [one.values[size] / one.values[first] * (size / first) ** -one.expected for size in ordered] for one in lines
    ]
    return list(zip(lines, ratios, strict=True))


def _limit(axes: Any, values: Sequence[float], measure: str, check: CoordinateCheck) -> None:
    """Limits that hold the wedge, a factor of 2 and every value, symmetric around 1: up and down look alike."""
    wedge = (max(check.sizes) / min(check.sizes)) ** TOLERANCE[measure]
    reach = 1.25 * max([wedge, 2.0, *values, *(1 / value for value in values)])
    axes.set_yscale("log", base=2)
    axes.set_ylim(1 / reach, reach)


def _draw(axes: Any, drawn: Sequence[tuple[Line, Sequence[float]]], check: CoordinateCheck, measure: str) -> None:
    sizes = sorted(check.sizes)
    ratios = [size / sizes[0] for size in sizes]
    tolerance = TOLERANCE[measure]
    axes.fill_between(sizes, [r**-tolerance for r in ratios], [r**tolerance for r in ratios], color=WEDGE, linewidth=0)
    axes.axhline(1, color=LINE, linewidth=0.8, zorder=1)
    for line, values in drawn:
        style = {"linewidth": 0.9, "alpha": 0.55} if line.passed else {"linewidth": 1.3, "alpha": 0.9}
        axes.plot(sizes, values, color=ROLE_COLORS[line.role], **style, zorder=2 if line.passed else 3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"×{value:g}" if value >= 1 else f"×1/{1 / value:g}")
    axes.set_xlim(sizes[0], sizes[-1])
    note = {"fontsize": 8, "color": INK, "transform": axes.transAxes}
    if not drawn:
        axes.text(0.04, 0.5, "zero at every size", **note)
        return
    slopes = [line.slope - line.expected for line, _ in drawn if line.slope is not None]
    axes.text(0.04, 0.955, f"slopes off by {_signed(min(slopes))} to {_signed(max(slopes))}", va="top", **note)
    failed = [line for line, _ in drawn if not line.passed]
    if failed:
        worst = max(failed, key=lambda line: abs((line.slope or 0) - line.expected))
        axes.text(0.04, 0.045, f"{len(failed)} of {len(drawn)} fail, most: {worst.name or 'the model'}", **note)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _legend(panels: Sequence[CoordinateCheck]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    roles = {line.role for check in panels for line in check.lines}
    handles: list[Any] = [
        Line2D([], [], color=color, linewidth=1.6, label=role or "whole module")
        for role, color in ROLE_COLORS.items()
        if role in roles
    ]
    return [*handles, Patch(facecolor=WEDGE, edgecolor=LINE, linewidth=0.6, label="tolerated")]
