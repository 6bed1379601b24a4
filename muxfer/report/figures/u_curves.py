"""U-curves: the loss over a setting, a line for each axis value, with divergences and the interval of the minimum.

A larger axis value has a stronger colour of one ramp, and each value has its own marker. The basin fills the panel. A
loss far above it is an arrow at the top, and a divergence is a cross in the band above.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import Cell, Table, all_cells, finite, hp_values, is_log2, seeds_text, settled_table
from muxfer.analysis.rows import Band
from muxfer.analysis.transferability import bands
from muxfer.files import replace_file
from muxfer.report.figures import style as shared
from muxfer.report.figures.style import INK, LINE, MARKERS, PAPER, brief, palette, pretty
from muxfer.report.format import METRIC, csv_text, rows_csv
from muxfer.trial import Outcome, Record, Verdict

Styles = Mapping[float, tuple[int, str, str]]  # Row, colour and marker by axis value
Panel = tuple[str, Sequence[Record], Verdict]  # A title, and the study below it
Bands = Mapping[float, Band]
MAX_TICKS = 14  # At most this many values have a tick each. A random search has more.


def u_curves_figure(records: Sequence[Record], verdict: Verdict, path_stem: Path, *, title: str) -> list[Path]:
    """A line for each axis value: STEM.png, .svg, .csv (a row a trial) and STEM-bands.csv (curves with 95 % bands)."""
    paths = shared.draw_files(lambda: _u_curves([(title, records, verdict)]), path_stem, csv_text(records))
    text = _bands_csv(_bands(records, verdict), verdict)
    return [*paths, replace_file(Path(f"{path_stem}-bands.csv"), text.encode())]


def compare_figure(panels: Sequence[Panel], path_stem: Path) -> list[Path]:
    """The U-curves of several studies side by side over one loss axis (μP beside SP), as STEM.png and STEM.svg."""
    return shared.draw_files(lambda: _u_curves(panels), path_stem)


def _bands(records: Sequence[Record], verdict: Verdict) -> Bands:
    log2_hp = is_log2(settled_table(records, verdict.axis, verdict.hp))
    return bands(records, axis=verdict.axis, hp=verdict.hp, log2_hp=log2_hp)


def _bands_csv(fitted: Bands, verdict: Verdict) -> str:
    rows = [
        [f"{axis:g}", *row]
        for axis, band in fitted.items()
        for row in zip(band.positions, band.mean, band.low, band.high, strict=True)
    ]
    return rows_csv([verdict.axis, verdict.hp, "fitted", "low", "high"], rows)


def _styles(tables: Sequence[Table]) -> Styles:
    """The row, colour and marker of each axis value, the same in all tables."""
    values = sorted({axis for table in tables for axis in table})
    colors = palette(len(values))
    return {axis: (i, colors[i], MARKERS[i % len(MARKERS)]) for i, axis in enumerate(values)}


def _u_curves(panels: Sequence[Panel]) -> Any:
    tables = [settled_table(records, verdict.axis, verdict.hp) for _, records, verdict in panels]
    fitted = [_bands(records, verdict) for _, records, verdict in panels]
    styles = _styles(tables)
    any_diverged = any(cell.outcome is Outcome.DIVERGED for table in tables for cell in all_cells(table))
    width = 7.6 if len(panels) == 1 else 1.2 + 4.6 * len(panels)
    figure = shared.new_figure(width, 4.6, h_pad=0.03, hspace=0.0)
    heights = [0.05 + 0.035 * len(styles) if any_diverged else 1e-3, 1]
    limits = _limits(tables)
    grid = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for column, ((title, _, verdict), table) in enumerate(zip(panels, tables, strict=True)):
        strip, axes = grid[0][column], grid[1][column]
        _draw_diverged(strip, table, styles, ruled=any_diverged, named=any_diverged and column == 0)
        _draw_bands(axes, _placer(table), fitted[column], styles)
        _draw_curves(axes, table, verdict, styles, limits)
        strip.set_title(brief(title, 60))
        if ends := [_placer(t)(hp) for t in tables for hp in hp_values(t) if is_log2(t) == is_log2(table)]:
            margin = 0.06 * (max(ends) - min(ends)) or 0.5
            axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_xlabel(f"{brief(verdict.hp)}{' (log scale)' if is_log2(table) else ''}")
        if column == 0:
            seeds = {seeds_text(table) for table in tables}
            axes.set_ylabel(METRIC + (seeds.pop() if len(seeds) == 1 else ""))
    handles = _legend(panels, tables, fitted, styles, limits)
    figure.legend(handles=handles, loc="outside right upper", handlelength=1.8, labelspacing=0.7)
    return figure


def _limits(tables: Sequence[Table]) -> tuple[float, float] | None:
    """From below the lowest loss to half above the worst optimum: an exploding right end must not flatten the rest."""
    lows = [[cell.mean for cell in row.values() if cell.mean is not None] for table in tables for row in table.values()]
    bests = [min(row) for row in lows if row]
    if not bests:
        return None
    lowest = min(metric for table in tables for cell in all_cells(table) for metric in cell.metrics.values())
    highest = max(mean for row in lows for mean in row)
    top = min(highest, max(bests) + max(0.5 * abs(max(bests)), 1.0 * (max(bests) - lowest)))
    room = (top - lowest) or abs(top) or 1.0
    return lowest - (0.05 + 0.03 * max(map(len, tables))) * room, top + 0.06 * room


def _draw_bands(axes: Any, place: Any, fitted: Bands, styles: Styles) -> None:
    """The fitted curves between the points. Where two bands do not overlap, the difference is more than noise."""
    for axis, band in fitted.items():
        x, color = [place(position) for position in band.positions], styles[axis][1]
        axes.fill_between(x, band.low, band.high, color=color, alpha=0.16, linewidth=0, zorder=1)
        axes.plot(x, band.mean, color=color, linewidth=3.2, alpha=0.35, solid_capstyle="round", zorder=1.5)


def _draw_curves(axes: Any, table: Table, verdict: Verdict, styles: Styles, limits: tuple[float, float] | None) -> None:
    place = _placer(table)
    if limits:
        axes.set_ylim(*limits)
    shared.grid_behind(axes)
    for axis, row in table.items():
        index, color, marker = styles[axis]
        dodge = 0.09 * (index - (len(styles) - 1) / 2)
        finished = [cell for cell in row.values() if cell.mean is not None]
        for run in _runs(row):
            axes.plot([place(cell.hp) for cell in run], [cell.mean for cell in run], color=color, linewidth=1.6)
        inside = [cell for cell in finished if limits is None or (cell.mean or 0) <= limits[1]]
        style = {"color": color, "linestyle": "none", "markeredgewidth": 0}
        axes.plot([place(c.hp) for c in inside], [c.mean for c in inside], marker=marker, markersize=5, **style)
        seeds = [(place(c.hp), m) for c in row.values() if len(c.metrics) > 1 for m in c.metrics.values()]
        axes.plot([x for x, _ in seeds], [y for _, y in seeds], marker="o", markersize=3.2, alpha=0.45, **style)
        for cell in finished:
            if limits and cell.mean is not None and cell.mean > limits[1]:
                above = {"marker": "^", "markersize": 7, "color": color, "clip_on": False, "zorder": 4}
                axes.plot([place(cell.hp) + dodge], [0.985], transform=axes.get_xaxis_transform(), **above)
        optimum = verdict.optimum.get(axis)
        if optimum and optimum.grid is not None and optimum.grid in row:
            best = row[optimum.grid]
            star = {"marker": "*", "markersize": 15, "color": color, "markeredgecolor": PAPER, "zorder": 5}
            axes.plot([place(best.hp)], [best.mean], linestyle="none", **star)
        if optimum and optimum.fitted is not None:
            ends = (optimum.fitted, optimum.low, optimum.high)
            _draw_interval(axes, [place(value) for value in ends if finite(value)], index, color)
    hps = hp_values(table)
    if len(hps) <= MAX_TICKS:
        axes.set_xticks([place(hp) for hp in hps], [pretty(hp) for hp in hps])
    elif is_log2(table):
        whole = range(math.ceil(place(hps[0])), math.floor(place(hps[-1])) + 1, math.ceil(len(hps) / 12) // 4 or 1)
        axes.set_xticks(whole, [pretty(2.0**exponent) for exponent in whole])


def _draw_interval(axes: Any, x: Sequence[float], index: int, color: str) -> None:
    """A tick at the minimum and a line over its interval. Each axis value has its own row: equal optima overlap."""
    style = {"transform": axes.get_xaxis_transform(), "color": color, "zorder": 4}
    low, high = 0.005 + 0.024 * index, 0.027 + 0.024 * index
    axes.plot([x[0], x[0]], [low, high], linewidth=2.4, **style)
    axes.plot([min(x), max(x)], [(low + high) / 2] * 2, linewidth=1.2, solid_capstyle="butt", **style)


def _draw_diverged(strip: Any, table: Table, styles: Styles, *, ruled: bool, named: bool) -> None:
    """One row of crosses for each axis value, the largest on top: the edge of stability at a glance."""
    place = _placer(table)
    for axis, row in table.items():
        index, color, _ = styles[axis]
        for cell in row.values():
            if cell.outcome is Outcome.DIVERGED:
                alpha = 0.45 if cell.metrics else 1.0  # some of its replicates finished
                strip.plot([place(cell.hp)], [index], marker="x", color=color, markersize=6, mew=1.8, alpha=alpha)
    strip.set_ylim(-0.7, max(len(styles), 1) - 0.3)
    strip.tick_params(bottom=False, labelbottom=False, left=False, labelleft=named)
    strip.set_yticks([(len(styles) - 1) / 2], ["diverged"])
    strip.spines[:].set_visible(False)
    strip.spines["bottom"].set(visible=ruled, color=LINE)


def _legend(
    panels: Sequence[Panel],
    tables: Sequence[Table],
    fitted: Sequence[Bands],
    styles: Styles,
    limits: tuple[float, float] | None,
) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    name = brief(panels[0][2].axis, 20)
    handles: list[Any] = [
        Line2D([], [], color=color, marker=marker, markersize=5, label=f"{name} {axis:g}")
        for axis, (_, color, marker) in styles.items()
    ]
    bare: dict[str, Any] = {"color": INK, "linestyle": "none"}
    handles.append(Line2D([], [], marker="*", markersize=11, label="best of the grid", **bare))
    if any(fitted):
        if any(finite(verdict.noise) for _, _, verdict in panels):
            handles.append(Patch(facecolor=INK, alpha=0.16, linewidth=0, label="fitted, 95 %"))
        else:
            handles.append(Line2D([], [], color=INK, linewidth=3.2, alpha=0.35, label="fitted"))
    if any(optimum.fitted is not None for _, _, verdict in panels for optimum in verdict.optimum.values()):
        handles.append(Line2D([], [], marker="|", markersize=9, mew=2.2, color=INK, linewidth=1.2, label="its optimum"))
    if any(len(cell.metrics) > 1 for table in tables for cell in all_cells(table)):
        handles.append(Line2D([], [], marker="o", markersize=3.2, alpha=0.5, label="one seed", **bare))
    if limits and any(cell.mean is not None and cell.mean > limits[1] for table in tables for cell in all_cells(table)):
        handles.append(Line2D([], [], marker="^", markersize=6, label="above the scale", **bare))
    return handles


def _runs(row: Mapping[float, Cell]) -> Iterator[list[Cell]]:
    """Stretches of neighbouring settings that finished. A line must not bridge a setting that diverged."""
    run: list[Cell] = []
    for cell in row.values():
        if cell.mean is not None:
            run.append(cell)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _placer(table: Table) -> Any:
    return math.log2 if is_log2(table) else float
