"""The evidence on a study's page. Each function writes its figures beside the page, and returns a section or None."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from muxfer.analysis import cells
from muxfer.analysis.laws.scaling_law import IsoflopFit
from muxfer.analysis.proxy_size import ProxyFront
from muxfer.analysis.scattered import is_scattered
from muxfer.report.blocks import Block, Fold, Mark, Paragraph, Section, Table, drawn, note
from muxfer.report.figures.laws import laws_figure
from muxfer.report.figures.optimum import optimum_figure
from muxfer.report.figures.proxies import proxies_figure
from muxfer.report.figures.search import importances_figure, parallel_figure, slices_figure
from muxfer.report.figures.training import training_curves_figure
from muxfer.report.figures.u_curves import u_curves_figure
from muxfer.report.format import METRIC, cell_text, drift_text, edge_text, num_decimals, regret_text
from muxfer.report.text import optimum_rows
from muxfer.trial import Point, Record, Verdict


class Context(TypedDict, total=False):
    """What a page shows beside the records. The page leaves out what is missing."""

    description: str
    points: Mapping[str, Sequence[Point]]  # Curves by trial key; `train_loss` is drawn
    wall_seconds: float
    environment: Mapping[str, str]
    command: str  # The command that made the study
    next_command: str  # Default: muxfer transfer NAME
    plan: Mapping[str, Any]  # As `muxfer plan --json`
    importances: Mapping[str, float]  # Share of the loss's variation that each setting explains
    front: ProxyFront  # Regret against cost
    fit: IsoflopFit
    check: Mapping[str, Any] | Path
    """A coordinate check: its JSON as `muxfer check --json` prints it (its `figure` is a PNG with an SVG beside it), or
    the folder where that command wrote JSON and figure beside each other."""


def u_curves(study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict) -> Section | None:
    """The loss over the setting at each axis value, drawn and in numbers. Settings off a grid have no curve."""
    if is_scattered(records, verdict.axis, verdict.hp):
        return None
    title = f"{study_name}: {verdict.hp} by {verdict.axis}"
    files = u_curves_figure(records, verdict, folder / "u-curves", title=title)
    caption = (
        f"One line per {verdict.axis}. Star: the best {verdict.hp} of the grid. Shade: the curve fitted around it, with"
        " its 95 % band where the noise is known. On the axis: the fitted optimum, with its interval then."
        " Arrows: finite, but above this scale. Crosses: diverged (pale: only some seeds)."
    )
    losses = cells.settled_table(records, verdict.axis, verdict.hp)
    numbers = Fold(summary="the numbers", blocks=_losses(losses, verdict), unfolded=len(losses) > 0)
    blocks: list[Block] = [drawn(files, "u", caption), numbers]
    return Section(name="U-curves", title=f"{METRIC.capitalize()} by {verdict.hp}", blocks=blocks)


def _losses(losses: cells.Table, verdict: Verdict) -> list[Block]:
    """The best of a column is marked, and what is within 2 % of it is shaded: the basin is visible as a shape."""
    if not losses:
        return [Paragraph(text="No trial has settled.")]
    decimals, bests = num_decimals(losses), cells.best_losses(losses)

    def marked(hp: float, axis: float) -> str | Mark:
        cell, best = losses[axis].get(hp), bests[axis]
        text = cell_text(cell, decimals)
        if cell is None or cell.mean is None or best is None:
            return Mark(text=text, tone="none")
        if cell.hp == cells.grid_optimum(verdict, axis):
            return Mark(text=f"★ {text}", tone="best")
        return Mark(text=text, tone="near") if cell.mean <= best + 0.02 * abs(best) else text

    header = [verdict.hp, *(f"{verdict.axis} {axis:g}" for axis in losses)]
    rows = [[cells.shown(hp), *(marked(hp, axis) for axis in losses)] for hp in cells.hp_values(losses)]
    legend = f"{METRIC.capitalize()}{cells.seeds_text(losses)}. ★ best of its column; shaded: within 2 % of it."
    return [Table(header=header, rows=rows), note(legend)]


def optimum(folder: Path, records: Sequence[Record], verdict: Verdict) -> Section | None:
    """Where the optimum lies as the task grows, and what a smaller task's choice costs the largest."""
    if not verdict.optimum or verdict.axis == "flops":
        return None  # the best size is meant to grow with the budget: the scaling law describes it
    if len(verdict.optimum) < 2 and is_scattered(records, verdict.axis, verdict.hp):
        return None  # a random search at one task has a best setting and no curve
    files = optimum_figure(verdict, folder / "optimum")
    caption = (
        f"Left: the best {verdict.hp} at each {verdict.axis}. Right: what the choice made there costs at the largest; a"
        " star is as measured. Where the noise is known the fitted ones and the costs have their 95 % intervals, and"
        " the drift's is a grey wedge."
    )
    header, *rows = optimum_rows(verdict)
    blocks: list[Block] = [drawn(files, "o", caption)] if files else []
    blocks += [Table(header=header, rows=rows), note(*_optimum_sentences(verdict))]
    return Section(name="Optimum", title="Optimum and regret", blocks=blocks)


def _optimum_sentences(verdict: Verdict) -> list[str]:
    drift = drift_text(verdict)
    sentences = [f"The optimum moves by {drift}." if drift is not None else "No drift can be told."]
    if verdict.from_ is not None:
        sentences.append(f"It transfers from {verdict.axis} {verdict.from_:g} on.")
    largest = list(verdict.optimum)[-1]
    if edge := edge_text(verdict.hp, verdict.optimum[largest]):
        sentences.append(f"At {verdict.axis} {largest:g} {edge}.")
    if cells.finite(verdict.noise):
        sentences.append(f"One trial's loss varies by {cells.percent(verdict.noise)} about the curves.")
    return [*sentences, "grid: the lowest mean; choice: the lowest on the fitted curve, which is what muxfer takes."]


def search(folder: Path, records: Sequence[Record], verdict: Verdict, context: Context) -> Section | None:
    """Every setting of a search over several settings. A single setting has its U-curves."""
    results = cells.settings_at_largest(records, verdict.axis)
    names = cells.searched_settings(results, verdict.axis)
    importances = context.get("importances") or {}
    if len(names) < 2 and not importances:
        return None
    known = results and verdict.axis in results[0].setting
    where = f" at {verdict.axis} {results[0].setting[verdict.axis]}" if known else ""
    blocks: list[Block] = []
    if len(names) > 1:
        caption = (
            f"A line for each setting{where}; the stronger the colour the better, the best five thick, dashed where a"
            " run has no loss. The upper end of the last axis is the best."
        )
        blocks.append(drawn(parallel_figure(results, names, folder / "parallel"), "p", caption))
    if importances:
        caption = "How much of the loss's variation each setting explains."
        blocks.append(drawn(importances_figure(importances, folder / "importances"), "i", caption))
    if len(names) > 1:
        caption = f"Each setting alone{where}; star: the best. What lies above the scale stands at its upper end."
        blocks.append(drawn(slices_figure(results, names, folder / "slices"), "s", caption))
    return Section(name="Search", title="What the search tried", blocks=blocks)


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
        choice = "" if one.choice is None else cells.shown(one.choice)
        remark = "front" if one.on_front else one.why
        rows.append([task, str(one.num_trials), f"{100 * one.share:.3g} %", choice, regret_text(one.regret), remark])
    blocks: list[Block] = [drawn(proxies_figure(front, folder / "proxies"), "f", caption)]
    if front.why:
        blocks.append(Paragraph(text=f"{front.why[:1].upper()}{front.why[1:]}."))
    blocks.append(Fold(summary=f"{len(rows)} proxies", blocks=[Table(header=header, rows=rows)]))
    return Section(name="Proxy size", title="Regret against cost", blocks=blocks)


def scaling_law(study_name: str, folder: Path, context: Context) -> Section | None:
    """How the best size, data and loss grow with the budget."""
    if (fit := context.get("fit")) is None:
        return None
    caption = (
        "Left: the loss over size at each budget; star: its optimum. Right: the laws through the optima, with their"
        " 95 % bands."
    )
    rows = []
    for name, law in fit.laws.items():
        interval = f"{law.exponent.low:.4f} to {law.exponent.high:.4f}"
        rows.append([name, f"{law.coefficient.value:.4g}", f"{law.exponent.value:.4f}", interval])
    blocks: list[Block] = [drawn(laws_figure(fit, folder / "isoflop", title=study_name), "l", caption)]
    if rows:
        blocks.append(Table(header=["grows with FLOPs", "coefficient", "exponent", "95 %"], rows=rows))
    return Section(name="Scaling law", title="Scaling law", blocks=[*blocks, note(fit.why, *fit.notes)])


def training(
    folder: Path, records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]
) -> Section | None:
    """The loss curves of each setting's first replicate."""
    if not (files := training_curves_figure(records, verdict, points, folder / "training")):
        return None
    caption = "One replicate a setting; the thick curve is the grid's optimum; crosses show where a run diverged."
    return Section(name="Training", title="Training curves", blocks=[drawn(files, "t", caption)])
