"""What a study found, for people: a table for the terminal, figures, and one HTML page that needs nothing but itself.

The page answers first and shows its evidence below: verdict and best setting in words, then the U-curves, the losses,
optimum and regret, training curves, cost, every trial. It fetches nothing and runs no script, so it can be mailed,
archived, or served under the strictest policy; names from a ledger are text here, never markup. Figures carry the
larger axis value in the stronger colour of one colour-blind-safe ramp, and tell series apart by marker as well; inside
the page their colours are CSS variables, so that one drawing reads on light and on dark.

matplotlib is imported when something is drawn, through its object interface: no window, no global figure.
"""

import base64
import csv
import io
import math
import os
import re
import shlex
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from muxfer.analysis.transferability import Cell, Table, at_best_others, best_setting, percent, settled_table, shown
from muxfer.trial import Outcome, Point, Record, Verdict

INK, LINE, PAPER = "#1c1e22", "#d5d8dc", "#fefefe"
"""Drawn in these, so that the page can swap them: text, grid lines, background."""

MARKERS = "osD^vPXph*"
MAX_CURVE_POINTS = 300
METRIC = "validation loss"
TERMINAL = 80

Styles = Mapping[float, tuple[int, str, str]]
"""Row, colour and marker by axis value."""

Panel = tuple[str, Sequence[Record], Verdict]
"""A title, and the study that is drawn under it."""


class Context(TypedDict, total=False):
    """What a report shows beside the records. Whatever is missing is left out of the page."""

    description: str
    points: Mapping[str, Sequence[Point]]
    """Curves by trial key; `train_loss` is drawn."""
    wall_seconds: float
    environment: Mapping[str, str]
    command: str
    """The command that made the study."""
    next_command: str
    """Default: muxfer transfer NAME."""


# --- the table --------------------------------------------------------------------------------------------------------


def table_text(records: Sequence[Record], verdict: Verdict) -> str:
    """The losses as aligned plain text: a row for each value of the setting, a column for each axis value.

    `*` marks the best of a column; a setting that diverged shows the first step at which a replicate did.
    """
    table = settled_table(records, verdict.axis, verdict.hp)
    if not table:
        return f"no trial has settled\nverdict  {verdict.verdict}: {verdict.why}"
    for short in (False, True):
        header = [verdict.hp, *(f"{axis:g} " if short else f"{verdict.axis} {axis:g}" for axis in table)]
        rows = [[shown(hp), *_texts(table, verdict, hp, short)] for hp in _hps(table)]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        if sum(widths) + 2 * (len(widths) - 1) <= TERMINAL:
            break
    columns = f", by {verdict.axis}" if short else ""
    lines = [f"{METRIC}{columns}{_mean_of(table)}; * best of its column", ""]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.append("")
    for axis, optimum in verdict.optimum.items():
        grid = "none finite" if optimum.grid is None else shown(optimum.grid)
        fitted = "" if optimum.fitted is None else f", fitted {_log2_text(optimum.fitted)}"
        lines.append(f"optimum at {verdict.axis} {axis:g}: {grid}{fitted}")
    drift = verdict.drift_per_doubling.get("value")
    if drift is not None:
        lines.append(f"drift: {_drift_text(drift, table, verdict)}")
    lines += textwrap.wrap(f"verdict: {verdict.verdict}: {verdict.why}", TERMINAL, subsequent_indent="  ")
    return "\n".join(lines)


def _texts(table: Table, verdict: Verdict, hp: float, short: bool) -> Iterator[str]:
    for axis, row in table.items():
        best = _grid_optimum(verdict, axis)
        yield _cell_text(row.get(hp), _decimals(table), short) + ("*" if best == hp else " ")


def _grid_optimum(verdict: Verdict, axis: float) -> float | None:
    return verdict.optimum[axis].grid if axis in verdict.optimum else None


def _cell_text(cell: Cell | None, decimals: int, short: bool = False) -> str:
    if cell is None:
        return "-"
    if cell.mean is not None:
        return f"{cell.mean:.{decimals}f}" if abs(cell.mean) < 1e5 else f"{cell.mean:.1e}"
    if cell.outcome is Outcome.FAILED:
        return "failed"
    name = str(cell.outcome)
    return f"{name[:1] if short else name}@{cell.step}" if cell.step else name


def _decimals(table: Table) -> int:
    """Four significant digits of the best loss, the same for the whole table, so that columns compare at a glance."""
    best = min((abs(cell.mean) for cell in _cells(table) if cell.mean), default=1.0)
    return min(max(3 - math.floor(math.log10(best)), 0), 8)


def _cells(table: Table) -> list[Cell]:
    return [cell for row in table.values() for cell in row.values()]


def _hps(table: Table) -> list[float]:
    return sorted({cell.hp for cell in _cells(table)})


def _mean_of(table: Table) -> str:
    num_seeds = max((len(cell.metrics) for cell in _cells(table)), default=1)
    return f", mean of {num_seeds} seeds" if num_seeds > 1 else ""


def _is_log2(table: Table) -> bool:
    """Whether the setting is drawn over its log2: wherever it has one. A column that is log2 already is negative."""
    hps = _hps(table)
    return bool(hps) and hps[0] > 0


def _log2_text(value: float) -> str:
    return f"2^{math.log2(value):.2f} ({value:.3g})" if 0 < value < 1 else f"{value:.3g}"


def _drift_text(drift: float, table: Table, verdict: Verdict) -> str:
    unit = f"log2 of {verdict.hp}" if _is_log2(table) else verdict.hp
    return f"{drift:+.2f} in {unit} per doubling of {verdict.axis}"


# --- figures ----------------------------------------------------------------------------------------------------------


def u_curves_figure(records: Sequence[Record], verdict: Verdict, path_stem: Path, *, title: str) -> list[Path]:
    """Validation loss over the setting, one line an axis value, as STEM.png, STEM.svg and STEM.csv (one row a trial).

    The basin fills the panel: what lies far above it is an arrow at the top, what diverged a cross in the band above.
    """
    with _drawing():
        figure = _u_curves([(title, records, verdict)])
        paths = _save(figure, path_stem)
    return [*paths, _replace(Path(f"{path_stem}.csv"), csv_text(records).encode())]


def compare_figure(panels: Sequence[Panel], path_stem: Path) -> list[Path]:
    """The U-curves of several studies side by side over one loss axis (μP beside SP), as STEM.png and STEM.svg."""
    with _drawing():
        return _save(_u_curves(panels), path_stem)


def csv_text(records: Iterable[Record]) -> str:
    """One row a proxy trial: its settings, replicate, outcome, metric (empty: it has none) and last step.

    `muxfer verdict --table` reads it back.
    """
    proxies = _ordered(record for record in records if record.kind == "proxy")
    names = sorted({name for record in proxies for name in record.setting})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "replicate", "outcome", "metric", "step"])
    for r in proxies:
        metric = "" if r.metric is None else repr(r.metric)
        writer.writerow([*(r.setting.get(name, "") for name in names), r.replicate, str(r.outcome), metric, r.step])
    return out.getvalue()


@contextmanager
def _drawing() -> Iterator[None]:
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


def _palette(count: int) -> list[tuple[str, str]]:
    """A sequential colour on light and its twin on dark for each of `count` values; the last stands out the most.

    The ends of plasma are cut where the contrast with the background would fall below 3:1.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    plasma = colormaps["plasma"]
    places = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    return [(to_hex(plasma(0.60 - 0.58 * place)), to_hex(plasma(0.46 + 0.50 * place))) for place in places]


def _styles(tables: Sequence[Table]) -> Styles:
    """One row, colour and marker for an axis value, whichever of the tables hold it."""
    values = sorted({axis for table in tables for axis in table})
    colors = [color for color, _ in _palette(len(values))]
    return {axis: (i, colors[i], MARKERS[i % len(MARKERS)]) for i, axis in enumerate(values)}


def _u_curves(panels: Sequence[Panel]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    tables = [settled_table(records, verdict.axis, verdict.hp) for _, records, verdict in panels]
    styles = _styles(tables)
    any_diverged = any(cell.outcome is Outcome.DIVERGED for table in tables for cell in _cells(table))
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
        if ends := [_placer(t)(hp) for t in tables for hp in _hps(t) if _is_log2(t) == _is_log2(table)]:
            margin = 0.06 * (max(ends) - min(ends)) or 0.5
            axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_xlabel(f"{_brief(verdict.hp)}{' (log scale)' if _is_log2(table) else ''}")
        if column == 0:
            seeds = {_mean_of(table) for table in tables}
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
    lowest = min(metric for table in tables for cell in _cells(table) for metric in cell.metrics.values())
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
    hps = _hps(table)
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
    if any(len(cell.metrics) > 1 for table in tables for cell in _cells(table)):
        handles.append(Line2D([], [], marker="o", markersize=3.2, alpha=0.5, label="one seed", **bare))
    if limits and any(cell.mean is not None and cell.mean > limits[1] for table in tables for cell in _cells(table)):
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
    return math.log2 if _is_log2(table) else float


def _brief(name: str, length: int = 40) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _pretty(value: float) -> str:
    """2⁻⁷ for 2^-7."""
    text = shown(value)
    return f"2{text[2:].translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}" if text.startswith("2^") else text


def _training_curves(records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]) -> Any:
    """Training loss by step, a small panel an axis value, the first replicate of each setting; the optimum thick."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    kept = at_best_others(records, verdict.axis, verdict.hp)
    table = settled_table(kept, verdict.axis, verdict.hp)
    first = min((record.replicate for record in kept), default=0)
    kept = [record for record in kept if record.replicate == first]
    hps = _hps(table)
    colors = {hp: color for hp, (color, _) in zip(hps, _palette(len(hps)), strict=True)}
    curves = {r.key: [p for p in points.get(r.key, ()) if p.name == "train_loss"] for r in kept}
    values = sorted(p.value for curve in curves.values() for p in curve)
    if not values:
        return None
    columns = min(len(table), 3)
    rows = math.ceil(len(table) / columns)
    figure = Figure(figsize=(1.4 + 2.9 * columns, 0.6 + 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, axis in zip(grid, table, strict=False):
        best = _grid_optimum(verdict, axis)
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


def _save(figure: Any, path_stem: Path) -> list[Path]:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return [
        _replace(Path(f"{path_stem}.png"), png.getvalue()),
        _replace(Path(f"{path_stem}.svg"), svg.getvalue()),
    ]


def _replace(path: Path, content: bytes) -> Path:
    """Write whole or not at all: a reader, or a killed driver, never sees half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# --- the page ---------------------------------------------------------------------------------------------------------


def write(
    study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict, *, context: Context | None = None
) -> Path:
    """FOLDER/report.html, and beside it u-curves.png, .svg and .csv. Each file is replaced whole."""
    context = context or {}
    paths = u_curves_figure(
        records, verdict, folder / "u-curves", title=f"{study_name}: {verdict.hp} by {verdict.axis}"
    )
    with _drawing():
        training = _training_curves(records, verdict, context.get("points", {}))
        curves = "" if training is None else _inline(_svg(training), "t")
    table = settled_table(records, verdict.axis, verdict.hp)
    sections = [
        _answer(study_name, records, verdict, context),
        _section(
            f"{METRIC.capitalize()} by {verdict.hp}",
            _figure(_inline(paths[1].read_text(), "u"), _curves_caption(verdict)),
        ),
        _section("The numbers", _loss_table(table, verdict)),
        _section("Optimum and regret", _optimum_table(table, verdict)),
        _section(
            "Training curves",
            _figure(
                curves,
                "One replicate a setting; the thick curve is the grid's optimum; crosses show where a run diverged.",
            ),
        )
        if curves
        else "",
        _section("Cost", _cost(records, context)),
        _section("Environment", _pairs(context["environment"])) if context.get("environment") else "",
        _section("Every trial", _trials(records)),
    ]
    shades = {**dict(_palette(len(table))), **dict(_palette(len(_hps(table))))}
    return _replace(folder / "report.html", _page(f"{study_name} · muxfer", sections, shades).encode())


def write_target(
    study_name: str,
    folder: Path,
    target: Record,
    records: Sequence[Record],
    verdict: Verdict,
    *,
    samples: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """FOLDER/target.html: what the launched target reached, beside each proxy's best, its samples and where it is from.

    `samples` is a PNG; the page holds a copy of it.
    """
    sections = [target_section(study_name, target, records, verdict, samples=samples, lineage=lineage)]
    return _replace(folder / "target.html", _page(f"{study_name} target · muxfer", sections, {}).encode())


def target_section(
    study_name: str,
    target: Record,
    records: Sequence[Record],
    verdict: Verdict,
    *,
    samples: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> str:
    """The target's part of a page, as HTML."""
    table = settled_table(records, verdict.axis, verdict.hp)
    bests = {
        axis: min((c.mean for c in row.values() if c.mean is not None), default=None) for axis, row in table.items()
    }
    lowest = min((best for best in bests.values() if best is not None), default=None)
    decimals = _decimals(table)
    if target.metric is None:
        headline, tone = f"The target {target.outcome} at step {target.step}.", "drifts"
    elif lowest is not None and target.metric < lowest:
        headline, tone = f"The target is better than every proxy: {METRIC} {target.metric:.{decimals}f}.", "transfers"
    else:
        headline, tone = f"The target reached {METRIC} {target.metric:.{decimals}f}.", "abstains"
    rows = []
    for axis, best in bests.items():
        cells = [cell for cell in table[axis].values() if best is not None and cell.mean == best]
        hp, step = (shown(cells[0].hp), str(cells[0].step)) if cells else ("", "")
        rows.append([f"proxy, {verdict.axis} {axis:g}", hp, step, *_against(best, target.metric, decimals)])
    own = target.setting.get(verdict.hp)
    own_hp = shown(float(own)) if isinstance(own, int | float) else str(own or "")
    name = f"target, {verdict.axis} {target.setting[verdict.axis]}" if verdict.axis in target.setting else "target"
    reached = str(target.outcome) if target.metric is None else f"{target.metric:.{decimals}f}"
    rows.append([name, own_hp, str(target.step), reached, ""])
    header = ["", verdict.hp, "step", METRIC, "target against it"]
    size = f" {target.num_parameters:,} parameters." if target.num_parameters else ""
    why = f"{_clock(target.train_seconds)} of training, {target.step} steps.{size}"
    badge = str(target.outcome)
    parts = [_headline(f"muxfer · target of {study_name}", headline, why, tone, badge)]
    if samples is not None:
        picture = base64.b64encode(samples.read_bytes()).decode()
        image = f'<img class="samples" alt="samples of the target" src="data:image/png;base64,{picture}">'
        parts.append(_section("Samples", _figure(image, "Drawn from the averaged weights.")))
    parts.append(_section("Against its proxies", _html_table(header, rows, last_strong=True)))
    if lineage:
        parts.append(_section("Lineage", _pairs(lineage)))
    return "".join(parts)


def _against(best: float | None, metric: float | None, decimals: int) -> tuple[str, str]:
    if best is None:
        return "none finite", ""
    relative = "" if metric is None or best == 0 else f"{100 * (metric - best) / abs(best):+.1f} %"
    return f"{best:.{decimals}f}", relative


def _answer(study_name: str, records: Sequence[Record], verdict: Verdict, context: Context) -> str:
    axis, hp = verdict.axis, verdict.hp
    headline = {
        "transfers": f"The best {hp} transfers along {axis}.",
        "drifts": f"The best {hp} drifts along {axis}.",
    }.get(verdict.verdict, f"Cannot tell whether the best {hp} transfers along {axis}.")
    why = f"{verdict.why[:1].upper()}{verdict.why[1:]}."
    best = best_setting(records, axis=axis, hp=hp)
    if best is None:
        found = f"<p>No {escape(hp)} has a finite loss at the largest {escape(axis)}.</p>"
    else:
        table = settled_table(records, axis, hp)
        values = {name: value for name, value in best.setting.items() if name != axis}
        exact = "".join(
            f"<b>{escape(name)} {escape(shown(value) if not isinstance(value, str) else value)}</b>"
            + (f" <small>= {value:.6g}</small>" if not isinstance(value, str) and shown(value).startswith("2^") else "")
            for name, value in values.items()
        )
        seeds = f", mean of {len(best.records)} seeds" if len(best.records) > 1 else ""
        loss = f"{METRIC} {best.metric:.{_decimals(table)}f} at {axis} {best.setting[axis]}{seeds}"
        found = f"<p>{exact}</p><p>{escape(loss)}</p>"
    lead = {"transfers": "Next", "drifts": "Next, knowing that it drifts"}.get(
        verdict.verdict, "Next, once that is settled"
    )
    command = context.get("next_command", f"muxfer transfer {shlex.quote(study_name)}")
    about = f"<p class='about'>{escape(context['description'])}</p>" if context.get("description") else ""
    cards = (
        f"<div class='cards'><div><h2>Best setting</h2>{found}</div>"
        f"<div><h2>{lead}</h2><pre>{escape(command)}</pre></div></div>"
    )
    return _headline(f"muxfer · sweep {study_name}", headline, why, verdict.verdict, verdict.verdict) + about + cards


def _headline(kicker: str, headline: str, why: str, tone: str, badge: str) -> str:
    mark = {"transfers": "✓", "drifts": "↘"}.get(tone, "?")
    tone = tone if tone in ("transfers", "drifts") else "abstains"
    return (
        f"<header class='{tone}'><p class='kicker'>{escape(kicker)}"
        f" <span class='badge'>{mark} {escape(badge)}</span></p>"
        f"<h1>{escape(headline)}</h1><p>{escape(why)}</p></header>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _figure(picture: str, caption: str) -> str:
    return f"<figure><div class='scroll'>{picture}</div><figcaption>{escape(caption)}</figcaption></figure>"


def _curves_caption(verdict: Verdict) -> str:
    return (
        f"One line per {verdict.axis}. Star: the best {verdict.hp} of the grid. Tick on the axis: the vertex of a"
        " parabola through the points around it. Arrows: finite, but above this scale. Crosses: diverged (pale:"
        " only some seeds). Also as u-curves.png, .svg and .csv beside this page."
    )


def _loss_table(table: Table, verdict: Verdict) -> str:
    """Best of a column strong, within 2 % of it shaded: the basin is visible as a shape."""
    if not table:
        return "<p>No trial has settled.</p>"
    decimals = _decimals(table)
    bests = {
        axis: min((c.mean for c in row.values() if c.mean is not None), default=None) for axis, row in table.items()
    }
    head = "".join(f"<th scope='col'>{escape(verdict.axis)} {axis:g}</th>" for axis in table)
    lines = [f"<tr><th scope='col'>{escape(verdict.hp)}</th>{head}</tr>"]
    for hp in _hps(table):
        cells = []
        for axis, row in table.items():
            cell, best = row.get(hp), bests[axis]
            text = escape(_cell_text(cell, decimals))
            if cell is None or cell.mean is None or best is None:
                cells.append(f"<td class='none'>{text}</td>")
            elif cell.hp == _grid_optimum(verdict, axis):
                cells.append(f"<td class='best'>★ {text}</td>")
            else:
                near = " class='near'" if cell.mean <= best + 0.02 * abs(best) else ""
                cells.append(f"<td{near}>{text}</td>")
        lines.append(f"<tr><th scope='row'>{escape(shown(hp))}</th>{''.join(cells)}</tr>")
    note = f"{METRIC.capitalize()}{_mean_of(table)}. ★ best of its column; shaded: within 2 % of it."
    return f"<div class='scroll'><table>{''.join(lines)}</table></div><p class='note'>{escape(note)}</p>"


def _optimum_table(table: Table, verdict: Verdict) -> str:
    regrets = {regret.from_: regret for regret in verdict.regret}
    rows = []
    for axis, optimum in verdict.optimum.items():
        regret = regrets.get(axis)
        cost = "" if regret is None else "diverges" if regret.relative is None else percent(regret.relative)
        grid = "none finite" if optimum.grid is None else shown(optimum.grid)
        fitted = "" if optimum.fitted is None else _log2_text(optimum.fitted)
        rows.append([f"{axis:g}", grid, fitted, "the largest" if table and axis == max(table) else cost])
    largest = f"{verdict.axis} {max(table):g}" if table else "the largest"
    header = [verdict.axis, f"best {verdict.hp} of the grid", "fitted", f"its cost at {largest}"]
    drift = verdict.drift_per_doubling.get("value")
    note = (
        f"The optimum moves by {_drift_text(drift, table, verdict)}." if drift is not None else "No drift can be told."
    )
    return _html_table(header, rows) + f"<p class='note'>{escape(note)}</p>"


def _cost(records: Sequence[Record], context: Context) -> str:
    proxies = [record for record in records if record.kind == "proxy"]
    outcomes = Counter(str(record.outcome) for record in proxies)
    pairs: dict[str, Any] = {
        "trials": f"{len(proxies)} ({', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())})",
        "training": _clock(sum(record.train_seconds for record in proxies)),
    }
    if "wall_seconds" in context:
        pairs["wall clock"] = _clock(context["wall_seconds"])
    sizes = sorted({record.num_parameters for record in proxies if record.num_parameters})
    if sizes:
        pairs["parameters"] = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    if resumed := sum(record.resumed_at > 0 for record in proxies):
        pairs["resumed"] = f"{resumed}, from a checkpoint"
    if "command" in context:
        pairs["command"] = context["command"]
    return _pairs(pairs)


def _trials(records: Sequence[Record]) -> str:
    names = sorted({name for record in records for name in record.setting})
    header = ["key", *names, "replicate", "outcome", METRIC, "step", "seconds", "remarks"]
    rows = []
    for record in _ordered(records):
        values = [record.setting.get(name, "") for name in names]
        settings = [value if isinstance(value, str) else shown(value) for value in values]
        metric = "" if record.metric is None else f"{record.metric:#.6g}"
        remarks = [record.kind] if record.kind != "proxy" else []
        remarks += [f"resumed at {record.resumed_at}"] if record.resumed_at else []
        remarks += [record.error] if record.error else []
        shared = [str(record.replicate), str(record.outcome), metric, str(record.step), f"{record.train_seconds:.1f}"]
        rows.append([record.key, *settings, *shared, "; ".join(remarks)])
    summary = f"{len(rows)} trials: key, setting, outcome, loss"
    return f"<details><summary>{summary}</summary>{_html_table(header, rows)}</details>"


def _ordered(records: Iterable[Record]) -> list[Record]:
    def place(record: Record) -> list[tuple[str, float, str]]:
        items = sorted(record.setting.items())
        return [(name, 0.0, value) if isinstance(value, str) else (name, float(value), "") for name, value in items]

    return sorted(records, key=lambda record: (record.kind != "proxy", place(record), record.replicate, record.key))


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, last_strong: bool = False) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    lines = [f"<tr>{head}</tr>"]
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        strong = " class='strong'" if last_strong and index == len(rows) - 1 else ""
        lines.append(f"<tr{strong}><th scope='row'>{escape(row[0])}</th>{cells}</tr>")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>"


def _pairs(pairs: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _inline(svg: str, prefix: str) -> str:
    """A drawing as part of a page: its colours become the page's variables, its ids its own, its style sheet goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=<svg )([^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(?<=<svg )([^>]*?)height="[^"]*"', r"\1role='img'", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    fixed = {INK: "var(--ink)", LINE: "var(--line)", PAPER: "var(--paper)"}

    def variable(found: re.Match[str]) -> str:
        return found[1] + fixed.get(found[2], f"var(--c-{found[2][1:]},{found[2]})")

    return re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})\b", variable, svg)


def _page(title: str, sections: Sequence[str], shades: Mapping[str, str]) -> str:
    light = "".join(f"--c-{name[1:]}:{name};" for name in shades)
    dark = "".join(f"--c-{name[1:]}:{shade};" for name, shade in shades.items())
    style = f":root{{{light}}}{STYLE}@media(prefers-color-scheme:dark){{:root{{{DARK}{dark}}}}}"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline';"
        ' img-src data:">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


DARK = """--ink:#e7e6e2;--soft:#a3a6ad;--line:#363a41;--paper:#15171b;--tint:#1e2126;
--good:#5cc8a8;--bad:#f2a25c;--near:#2c3440;"""

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e22;--soft:#5d626b;--line:#d5d8dc;--paper:#fefefe;--tint:#f4f5f6;
--good:#0b7a5e;--bad:#a8500a;--near:#e6ebf3}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:56rem;margin:0 auto;padding:2rem 1.25rem 4rem}
header{border-left:.35rem solid var(--tone);padding-left:1.1rem;--tone:var(--soft)}
header.transfers{--tone:var(--good)}header.drifts{--tone:var(--bad)}
header p{margin:.3rem 0;max-width:46rem}
h1{font-size:1.75rem;line-height:1.2;margin:.35rem 0;font-weight:650}
h2{font-size:1.05rem;margin:0 0 .7rem;font-weight:650}
.kicker,.note,figcaption,.about{color:var(--soft);font-size:.88rem}
.badge{color:var(--tone);border:1px solid;border-radius:1rem;padding:.05rem .6rem;margin-left:.5rem;font-weight:600}
.about{margin:1rem 0 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem;margin:1.4rem 0 0}
.cards>div{background:var(--tint);border-radius:.5rem;padding:1rem 1.1rem}
.cards h2{color:var(--soft);font-size:.8rem;margin:0 0 .3rem;font-weight:500}
.cards p{margin:.1rem 0}.cards b{font-size:1.2rem}.cards small{color:var(--soft)}
pre{margin:.2rem 0 0;font:1rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
section{margin-top:2.4rem;border-top:1px solid var(--line);padding-top:1.2rem}
figure{margin:0}svg{display:block;width:100%;height:auto;min-width:30rem;fill:currentColor;
stroke-linejoin:round;stroke-linecap:butt}
.samples{display:block;width:100%;max-width:36rem;image-rendering:pixelated}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.28rem .9rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:500;color:var(--soft)}th:first-child,td:first-child{text-align:left;padding-left:.3rem}
tr.strong>*,td.best{font-weight:700;color:var(--ink)}
td.best,td.near{background:var(--near)}td.none{color:var(--soft);font-style:italic}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.4rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer}details table{margin-top:.8rem;font-size:.82rem}
@media print{details{display:block}}
"""
