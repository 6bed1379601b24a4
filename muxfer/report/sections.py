"""The parts of a study's page below its answer: the evidence, then what it took.

Each part draws its figures, leaves them beside the page as PNG, SVG and CSV, and returns a section; None where the
study has nothing for it.
"""

import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from muxfer.analysis.cells import (
    Table,
    best_losses,
    finite,
    grid_optimum,
    hp_values,
    percent,
    searched_settings,
    seeds_text,
    settings_at_largest,
    settled_table,
    shown,
)
from muxfer.analysis.proxy_size import ProxyFront
from muxfer.analysis.scaling_law import IsoflopFit
from muxfer.analysis.scattered import is_scattered
from muxfer.files import content_of
from muxfer.report import html
from muxfer.report.figures import training_curves_figure, u_curves_figure
from muxfer.report.figures.laws import laws_figure
from muxfer.report.figures.optimum import optimum_figure
from muxfer.report.figures.proxies import proxies_figure
from muxfer.report.figures.search import importances_figure, parallel_figure, slices_figure
from muxfer.report.format import METRIC, cell_text, drift_text, edge_text, num_decimals, regret_text
from muxfer.report.html import Section
from muxfer.report.text import optimum_rows
from muxfer.trial import Point, Record, Verdict

logger = logging.getLogger(__name__)


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
    plan: Mapping[str, Any]
    """As `muxfer plan --json`."""
    importances: Mapping[str, float]
    """Share of the loss's variation that each setting explains."""
    front: ProxyFront
    """Regret against cost."""
    fit: IsoflopFit
    check: Mapping[str, Any] | Path
    """A coordinate check: its JSON (as `muxfer check --json`, whose `figure` is a PNG with an SVG beside it), or the
    folder where the command left JSON and figure beside each other."""


def u_curves(study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict) -> Section | None:
    """The loss over the setting at each axis value: the drawing, and every number of it. A drawn one has no curve."""
    if is_scattered(records, verdict.axis, verdict.hp):
        return None
    files = u_curves_figure(
        records, verdict, folder / "u-curves", title=f"{study_name}: {verdict.hp} by {verdict.axis}"
    )
    caption = (
        f"One line per {verdict.axis}. Star: the best {verdict.hp} of the grid. Shade: the curve fitted around it, with"
        " its 95 % band where the noise is known. On the axis: the fitted optimum, with its interval then."
        " Arrows: finite, but above this scale. Crosses: diverged (pale: only some seeds)."
    )
    table = settled_table(records, verdict.axis, verdict.hp)
    body = drawn(files, "u", caption) + html.folded("the numbers", _losses(table, verdict), unfolded=len(table) > 0)
    return Section(name="U-curves", title=f"{METRIC.capitalize()} by {verdict.hp}", body=body)


def drawn(files: Sequence[Path], prefix: str, caption: str) -> str:
    svg = next(file for file in files if file.suffix == ".svg")
    return html.figure(html.inline(svg.read_text(), prefix), caption, files)


def _losses(table: Table, verdict: Verdict) -> str:
    """Best of a column strong, within 2 % of it shaded: the basin is visible as a shape."""
    if not table:
        return "<p>No trial has settled.</p>"
    decimals = num_decimals(table)
    bests = best_losses(table)
    head = "".join(f"<th scope='col'>{escape(verdict.axis)} {axis:g}</th>" for axis in table)
    lines = [f"<tr><th scope='col'>{escape(verdict.hp)}</th>{head}</tr>"]
    for hp in hp_values(table):
        cells = []
        for axis, row in table.items():
            cell, best = row.get(hp), bests[axis]
            text = escape(cell_text(cell, decimals))
            if cell is None or cell.mean is None or best is None:
                cells.append(f"<td class='none'>{text}</td>")
            elif cell.hp == grid_optimum(verdict, axis):
                cells.append(f"<td class='best'>★ {text}</td>")
            else:
                near = " class='near'" if cell.mean <= best + 0.02 * abs(best) else ""
                cells.append(f"<td{near}>{text}</td>")
        lines.append(f"<tr><th scope='row'>{escape(shown(hp))}</th>{''.join(cells)}</tr>")
    told = html.note(f"{METRIC.capitalize()}{seeds_text(table)}. ★ best of its column; shaded: within 2 % of it.")
    return f"<div class='scroll'><table>{''.join(lines)}</table></div>{told}"


def optimum(folder: Path, records: Sequence[Record], verdict: Verdict) -> Section | None:
    """Where the optimum lies as the task grows, and what a smaller task's choice costs the largest."""
    if not verdict.optimum or verdict.axis == "flops":
        return None  # the size that a budget is best spent on is meant to grow: the scaling law tells
    if len(verdict.optimum) < 2 and is_scattered(records, verdict.axis, verdict.hp):
        return None  # a drawn search at one task: it has a best setting and no curve
    files = optimum_figure(verdict, folder / "optimum")
    caption = (
        f"Left: the best {verdict.hp} at each {verdict.axis}. Right: what the choice made there costs at the largest; a"
        " star is as measured. Where the noise is known the fitted ones and the costs have their 95 % intervals, and"
        " the drift's is a grey wedge."
    )
    header, *rows = optimum_rows(verdict)
    drift = drift_text(verdict)
    told = [f"The optimum moves by {drift}." if drift is not None else "No drift can be told."]
    if verdict.from_ is not None:
        told.append(f"It transfers from {verdict.axis} {verdict.from_:g} on.")
    edges = [(axis, edge_text(verdict.hp, found)) for axis, found in verdict.optimum.items()]
    told += [f"At {verdict.axis} {axis:g} {edge}." for axis, edge in edges[-1:] if edge]
    if finite(verdict.noise):
        told.append(f"One trial's loss varies by {percent(verdict.noise)} about the curves.")
    told.append("grid: the lowest mean; choice: the lowest on the fitted curve, which is what muxfer takes.")
    drawing = drawn(files, "o", caption) if files else ""
    return Section(
        name="Optimum", title="Optimum and regret", body=drawing + html.table(header, rows) + html.note(*told)
    )


def search(folder: Path, records: Sequence[Record], verdict: Verdict, context: Context) -> Section | None:
    """Every setting of a search over several: one alone is told by its U-curves."""
    found = settings_at_largest(records, verdict.axis)
    names = searched_settings(found, verdict.axis)
    importances = context.get("importances") or {}
    if len(names) < 2 and not importances:
        return None
    where = f" at {verdict.axis} {found[0].setting[verdict.axis]}" if found and verdict.axis in found[0].setting else ""
    parts = []
    if len(names) > 1:
        caption = (
            f"A line for each setting{where}; the stronger the colour the better, the best five thick, dashed where a"
            " run has no loss. The upper end of the last axis is the best."
        )
        parts.append(drawn(parallel_figure(found, names, folder / "parallel"), "p", caption))
    if importances:
        caption = "How much of the loss's variation each setting explains."
        parts.append(drawn(importances_figure(importances, folder / "importances"), "i", caption))
    if len(names) > 1:
        caption = f"Each setting alone{where}; star: the best. What lies above the scale stands at its upper end."
        parts.append(drawn(slices_figure(found, names, folder / "slices"), "s", caption))
    return Section(name="Search", title="What the search tried", body="".join(parts))


def proxies(folder: Path, context: Context) -> Section | None:
    """Regret against cost: how small the proxy may be."""
    if (front := context.get("front")) is None or not front.candidates:
        return None
    caption = (
        "What the whole sweep of a smaller task costs, against what the largest loses by the setting chosen there, with"
        " its 95 % interval. Towards the lower left is better; no proxy to the left of a step gets below it."
    )
    header = ["proxy", "trials", "cost", f"choice of {front.hp}", "regret, 95 %", ""]
    rows = []
    for one in front.candidates:
        task = ", ".join(f"{name} {size:g}" for name, size in one.task.items())
        choice = "" if one.choice is None else shown(one.choice)
        told = "front" if one.on_front else one.why
        rows.append([task, str(one.num_trials), f"{100 * one.share:.3g} %", choice, regret_text(one.regret), told])
    body = drawn(proxies_figure(front, folder / "proxies"), "f", caption)
    body += f"<p>{escape(front.why[:1].upper() + front.why[1:])}.</p>" if front.why else ""
    body += html.folded(f"{len(rows)} proxies", html.table(header, rows))
    return Section(name="Proxy size", title="Regret against cost", body=body)


def law(study_name: str, folder: Path, context: Context) -> Section | None:
    """How the best size, data and loss grow with the budget."""
    if (fit := context.get("fit")) is None:
        return None
    caption = (
        "Left: the loss over size at each budget; star: its optimum. Right: the laws through the optima, with their"
        " 95 % bands."
    )
    rows = []
    for name, found in fit.laws.items():
        exponent, scale = found.exponent, found.coefficient
        interval = f"{exponent.low:.4f} to {exponent.high:.4f}"
        rows.append([name, f"{scale.value:.4g}", f"{exponent.value:.4f}", interval])
    body = drawn(laws_figure(fit, folder / "isoflop", title=study_name), "l", caption)
    body += html.table(["grows with FLOPs", "coefficient", "exponent", "95 %"], rows) if rows else ""
    return Section(name="Scaling law", title="Scaling law", body=body + html.note(fit.why, *fit.notes))


def training(
    folder: Path, records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]
) -> Section | None:
    """The loss curves of each setting's first replicate."""
    if not (files := training_curves_figure(records, verdict, points, folder / "training")):
        return None
    caption = "One replicate a setting; the thick curve is the grid's optimum; crosses show where a run diverged."
    return Section(name="Training", title="Training curves", body=drawn(files, "t", caption))


def drawing_of(file: Path) -> str | None:
    """The SVG that lies there; None where none does."""
    text = (content_of(file, follow=False) or b"").decode(errors="replace")
    return text if "<svg" in text else None


def environment(context: Context) -> Section | None:
    if not context.get("environment"):
        return None
    return Section(name="Environment", title="Environment", body=html.pairs(context["environment"]))
