"""The figures of a study: U-curves, alone or side by side, and training curves.

They carry the larger axis value in the stronger colour of one colour-blind-safe ramp, and tell series apart by marker
as well. matplotlib is imported when something is drawn, through its object interface: no window, no global figure.
"""

import io
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muxfer.analysis.transferability import Cell, Table, at_best_others, settled_table, shown
from muxfer.tables import METRIC, all_cells, csv_text, grid_optimum, hp_values, is_log2, mean_of
from muxfer.trial import Outcome, Point, Record, Verdict

INK, LINE, PAPER = "#1c1e22", "#d5d8dc", "#fefefe"
"""Drawn in these, so that the page can swap them: text, grid lines, background."""

MARKERS = "osD^vPXph*"
MAX_CURVE_POINTS = 300

Styles = Mapping[float, tuple[int, str, str]]
"""Row, colour and marker by axis value."""

Panel = tuple[str, Sequence[Record], Verdict]
"""A title, and the study that is drawn under it."""


def u_curves_figure(records: Sequence[Record], verdict: Verdict, path_stem: Path, *, title: str) -> list[Path]:
    """Validation loss over the setting, one line an axis value, as STEM.png, STEM.svg and STEM.csv (one row a trial).

    The basin fills the panel: what lies far above it is an arrow at the top, what diverged a cross in the band above.
    """
    with drawing():
        figure = _u_curves([(title, records, verdict)])
        paths = save(figure, path_stem)
    return [*paths, replace_file(Path(f"{path_stem}.csv"), csv_text(records).encode())]


def compare_figure(panels: Sequence[Panel], path_stem: Path) -> list[Path]:
    """The U-curves of several studies side by side over one loss axis (μP beside SP), as STEM.png and STEM.svg."""
    with drawing():
        return save(_u_curves(panels), path_stem)


def training_curves_svg(records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]) -> str:
    """Training loss by step, a small panel an axis value, the first replicate of each setting; the optimum thick.

    Empty where `points` (by trial key) hold no `train_loss`.
    """
    with drawing():
        figure = _training_curves(records, verdict, points)
        return "" if figure is None else _svg(figure)


def palette(count: int) -> list[tuple[str, str]]:
    """A sequential colour on light and its twin on dark for each of `count` values; the last stands out the most.

    The ends of plasma are cut where the contrast with the background would fall below 3:1.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    plasma = colormaps["plasma"]
    places = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    return [(to_hex(plasma(0.60 - 0.58 * place)), to_hex(plasma(0.46 + 0.50 * place))) for place in places]


def replace_file(path: Path, content: bytes) -> Path:
    """Write whole or not at all: a reader, or a killed driver, never sees half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def drawing() -> Iterator[None]:
    import matplotlib

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "muxfer",
        "text.parse_math": False,  # a study may be called "$x^"
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="constrained_layout not applied", category=UserWarning)
        yield


def _styles(tables: Sequence[Table]) -> Styles:
    """One row, colour and marker for an axis value, whichever of the tables hold it."""
    values = sorted({axis for table in tables for axis in table})
    colors = [color for color, _ in palette(len(values))]
    return {axis: (i, colors[i], MARKERS[i % len(MARKERS)]) for i, axis in enumerate(values)}


def _u_curves(panels: Sequence[Panel]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    tables = [settled_table(records, verdict.axis, verdict.hp) for _, records, verdict in panels]
    styles = _styles(tables)
    any_diverged = any(cell.outcome is Outcome.DIVERGED for table in tables for cell in all_cells(table))
    figure = Figure(
        figsize=(7.6 if len(panels) == 1 else 1.2 + 4.6 * len(panels), 4.6),
        layout=ConstrainedLayoutEngine(h_pad=0.03, hspace=0.0),
    )
    heights = [0.05 + 0.035 * len(styles) if any_diverged else 1e-3, 1]
    limits = _limits(tables)
    grid = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row", height_ratios=heights)
    for column, ((title, _, verdict), table) in enumerate(zip(panels, tables, strict=True)):
        band, axes = grid[0][column], grid[1][column]
        _draw_band(band, table, styles, ruled=any_diverged, named=any_diverged and column == 0)
        _draw_curves(axes, table, verdict, styles, limits)
        band.set_title(_brief(title, 60))
        if ends := [_placer(t)(hp) for t in tables for hp in hp_values(t) if is_log2(t) == is_log2(table)]:
            margin = 0.06 * (max(ends) - min(ends)) or 0.5
            axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_xlabel(f"{_brief(verdict.hp)}{' (log scale)' if is_log2(table) else ''}")
        if column == 0:
            seeds = {mean_of(table) for table in tables}
            axes.set_ylabel(METRIC + (seeds.pop() if len(seeds) == 1 else ""))
    figure.legend(
        handles=_legend(panels, tables, styles, limits), loc="outside right upper", handlelength=1.8, labelspacing=0.7
    )
    return figure


def _limits(tables: Sequence[Table]) -> tuple[float, float] | None:
    """From below the lowest loss to half above the worst optimum: a right end that explodes must not flatten all."""
    lows = [[cell.mean for cell in row.values() if cell.mean is not None] for table in tables for row in table.values()]
    bests = [min(row) for row in lows if row]
    if not bests:
        return None
    lowest = min(metric for table in tables for cell in all_cells(table) for metric in cell.metrics.values())
    highest = max(mean for row in lows for mean in row)
    top = min(highest, max(bests) + max(0.5 * abs(max(bests)), 1.0 * (max(bests) - lowest)))
    room = (top - lowest) or abs(top) or 1.0
    return lowest - (0.05 + 0.03 * max(map(len, tables))) * room, top + 0.06 * room


def _draw_curves(axes: Any, table: Table, verdict: Verdict, styles: Styles, limits: tuple[float, float] | None) -> None:
    place = _placer(table)
    if limits:
        axes.set_ylim(*limits)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
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
            x = place(optimum.fitted)
            rug = [0.005 + 0.024 * index, 0.027 + 0.024 * index]  # a row each: optima that agree would hide each other
            axes.plot([x, x], rug, transform=axes.get_xaxis_transform(), color=color, linewidth=2.4, zorder=4)
    hps = hp_values(table)
    every = math.ceil(len(hps) / 12)
    axes.set_xticks([place(hp) for hp in hps], [_pretty(hp) if i % every == 0 else "" for i, hp in enumerate(hps)])


def _draw_band(band: Any, table: Table, styles: Styles, *, ruled: bool, named: bool) -> None:
    """One row of crosses an axis value, the largest on top: the edge of stability, at a glance."""
    place = _placer(table)
    for axis, row in table.items():
        index, color, _ = styles[axis]
        for cell in row.values():
            if cell.outcome is Outcome.DIVERGED:
                alpha = 0.45 if cell.metrics else 1.0  # some of its replicates finished
                band.plot([place(cell.hp)], [index], marker="x", color=color, markersize=6, mew=1.8, alpha=alpha)
    band.set_ylim(-0.7, max(len(styles), 1) - 0.3)
    band.tick_params(bottom=False, labelbottom=False, left=False, labelleft=named)
    band.set_yticks([(len(styles) - 1) / 2], ["diverged"])
    band.spines[:].set_visible(False)
    band.spines["bottom"].set(visible=ruled, color=LINE)


def _legend(
    panels: Sequence[Panel], tables: Sequence[Table], styles: Styles, limits: tuple[float, float] | None
) -> list[Any]:
    from matplotlib.lines import Line2D

    name = _brief(panels[0][2].axis, 20)
    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5, label=f"{name} {axis:g}")
        for axis, (_, color, marker) in styles.items()
    ]
    bare: dict[str, Any] = {"color": INK, "linestyle": "none"}
    handles.append(Line2D([], [], marker="*", markersize=11, label="grid optimum", **bare))
    if any(optimum.fitted is not None for _, _, verdict in panels for optimum in verdict.optimum.values()):
        handles.append(Line2D([], [], marker="|", markersize=10, mew=2.2, label="fitted optimum", **bare))
    if any(len(cell.metrics) > 1 for table in tables for cell in all_cells(table)):
        handles.append(Line2D([], [], marker="o", markersize=3.2, alpha=0.5, label="one seed", **bare))
    if limits and any(cell.mean is not None and cell.mean > limits[1] for table in tables for cell in all_cells(table)):
        handles.append(Line2D([], [], marker="^", markersize=6, label="above the scale", **bare))
    return handles


def _runs(row: Mapping[float, Cell]) -> Iterator[list[Cell]]:
    """Stretches of neighbouring settings that finished: a line must not bridge one that diverged."""
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


def _brief(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _pretty(value: float) -> str:
    """2⁻⁷ for 2^-7."""
    text = shown(value)
    return f"2{text[2:].translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if text.startswith("2^") else text


def _training_curves(records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kept = at_best_others(records, verdict.axis, verdict.hp)
    table = settled_table(kept, verdict.axis, verdict.hp)
    first = min((record.replicate for record in kept), default=0)
    kept = [record for record in kept if record.replicate == first]
    hps = hp_values(table)
    colors = {hp: color for hp, (color, _) in zip(hps, palette(len(hps)), strict=True)}
    curves = {r.key: [p for p in points.get(r.key, ()) if p.name == "train_loss"] for r in kept}
    values = sorted(p.value for curve in curves.values() for p in curve)
    if not values:
        return None
    columns = min(len(table), 3)
    rows = math.ceil(len(table) / columns)
    figure = Figure(figsize=(1.4 + 2.9 * columns, 0.6 + 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, axis in zip(grid, table, strict=False):
        best = grid_optimum(verdict, axis)
        for record in kept:
            hp, curve = float(record.setting[verdict.hp]), curves[record.key]
            if float(record.setting[verdict.axis]) == axis and curve:
                curve = curve[:: math.ceil(len(curve) / MAX_CURVE_POINTS)]
                x, y = [p.step for p in curve], [p.value for p in curve]
                axes.plot(x, y, color=colors[hp], linewidth=2.2 if hp == best else 0.8, zorder=3 if hp == best else 2)
                if record.outcome is Outcome.DIVERGED:
                    y_end = min(y[-1], values[int(0.98 * (len(values) - 1))])
                    axes.plot(x[-1:], [y_end], marker="x", color=colors[hp], markersize=6, mew=1.8, zorder=4)
        axes.set_title(f"{_brief(verdict.axis, 20)} {axis:g}")
        axes.grid(axis="y")
        if values[0] > 0:
            axes.set_yscale("log")
            axes.set_ylim(0.93 * values[0], 1.1 * values[int(0.98 * (len(values) - 1))])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    for index in range(len(table), len(grid)):
        grid[index].set_visible(False)
        grid[index - columns].tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("training loss", fontsize=10)
    handles = [Line2D([], [], color=colors[hp], linewidth=1.8, label=_pretty(hp)) for hp in reversed(hps)]
    handles.append(Line2D([], [], color=INK, linewidth=2.6, label="optimum"))
    figure.legend(
        handles=handles, loc="outside right upper", title=_brief(verdict.hp, 20), handlelength=1.4, alignment="left"
    )
    return figure


def save(figure: Any, path_stem: Path) -> list[Path]:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    return [
        replace_file(Path(f"{path_stem}.png"), png.getvalue()),
        replace_file(Path(f"{path_stem}.svg"), _svg(figure).encode()),
    ]


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
