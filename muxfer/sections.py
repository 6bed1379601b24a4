"""The parts of a study's page below its answer: the evidence, then what it took.

Each part draws its figures, leaves them beside the page as PNG, SVG and CSV, and returns a section; None where the
study has nothing for it.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from muxfer import page
from muxfer.analysis.cells import Table, percent, settled_table, shown
from muxfer.analysis.proxy_size import ProxyFront
from muxfer.analysis.scaling_law import IsoflopFit
from muxfer.analysis.scattered import is_scattered
from muxfer.figures import replace_file, training_curves_figure, u_curves_figure
from muxfer.figures.laws import laws_figure
from muxfer.figures.optimum import optimum_figure
from muxfer.figures.proxies import proxies_figure
from muxfer.figures.search import importances_figure, parallel_figure, slices_figure
from muxfer.form import content_of, expect
from muxfer.page import Section
from muxfer.tables import (
    METRIC,
    best_losses,
    cell_text,
    drift_text,
    edge_text,
    finite,
    grid_optimum,
    hp_values,
    mean_of,
    num_decimals,
    optimum_rows,
    ordered,
    regret_text,
    tried,
    varied,
)
from muxfer.trial import Point, Record, Verdict

_logger = logging.getLogger(__name__)


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


_Line = TypedDict("_Line", {"name": str, "measure": str, "slope": float | None, "expected": float, "pass": bool})


class _Control(TypedDict):
    parametrization: str
    verdict: str


class _Check(TypedDict):
    model: str
    parametrization: str
    verdict: str
    axis: str
    sizes: Sequence[int]
    steps: int
    modules: Sequence[_Line]
    control: NotRequired[Any]
    """None, or a _Control."""


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
    body = _drawn(files, "u", caption) + page.folded("the numbers", _losses(table, verdict), unfolded=len(table) > 0)
    return Section(name="U-curves", title=f"{METRIC.capitalize()} by {verdict.hp}", body=body)


def _drawn(files: Sequence[Path], prefix: str, caption: str) -> str:
    svg = next(file for file in files if file.suffix == ".svg")
    return page.figure(page.inline(svg.read_text(), prefix), caption, files)


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
    told = page.note(f"{METRIC.capitalize()}{mean_of(table)}. ★ best of its column; shaded: within 2 % of it.")
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
    drawing = _drawn(files, "o", caption) if files else ""
    return Section(
        name="Optimum", title="Optimum and regret", body=drawing + page.table(header, rows) + page.note(*told)
    )


def search(folder: Path, records: Sequence[Record], verdict: Verdict, context: Context) -> Section | None:
    """Every setting of a search over several: one alone is told by its U-curves."""
    found = tried(records, verdict.axis)
    names = varied(found, verdict.axis)
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
        parts.append(_drawn(parallel_figure(found, names, folder / "parallel"), "p", caption))
    if importances:
        caption = "How much of the loss's variation each setting explains."
        parts.append(_drawn(importances_figure(importances, folder / "importances"), "i", caption))
    if len(names) > 1:
        caption = f"Each setting alone{where}; star: the best. What lies above the scale stands at its upper end."
        parts.append(_drawn(slices_figure(found, names, folder / "slices"), "s", caption))
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
    body = _drawn(proxies_figure(front, folder / "proxies"), "f", caption)
    body += f"<p>{escape(front.why[:1].upper() + front.why[1:])}.</p>" if front.why else ""
    body += page.folded(f"{len(rows)} proxies", page.table(header, rows))
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
    body = _drawn(laws_figure(fit, folder / "isoflop", title=study_name), "l", caption)
    body += page.table(["grows with FLOPs", "coefficient", "exponent", "95 %"], rows) if rows else ""
    return Section(name="Scaling law", title="Scaling law", body=body + page.note(fit.why, *fit.notes))


def training(
    folder: Path, records: Sequence[Record], verdict: Verdict, points: Mapping[str, Sequence[Point]]
) -> Section | None:
    """The loss curves of each setting's first replicate."""
    if not (files := training_curves_figure(records, verdict, points, folder / "training")):
        return None
    caption = "One replicate a setting; the thick curve is the grid's optimum; crosses show where a run diverged."
    return Section(name="Training", title="Training curves", body=_drawn(files, "t", caption))


def coordinates(folder: Path, context: Context) -> Section | None:
    """The coordinate check's verdict by measure, and its figure, copied beside the page."""
    if (given := context.get("check")) is None:
        return None
    if (found := (given, Path(given["figure"])) if isinstance(given, Mapping) else _newest_check(given)) is None:
        return None
    data, figure = found
    told = {"pass": "keeps", "fail": "does not keep"}.get(data["verdict"], data["verdict"])
    control = data.get("control") or {}
    beside = f" {control['parametrization']}, the control: {control['verdict']}." if control else ""
    sizes = ", ".join(map(str, data["sizes"]))
    sentence = (
        f"{data['model']} under {data['parametrization']} {told} its coordinates at {data['axis']} {sizes}"
        f" ({data['steps']} steps): {data['verdict']}.{beside}"
    )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in data["modules"]:
        groups.setdefault(line["measure"], []).append(line)
    rows = []
    for measure, lines in groups.items():
        sloped = [line for line in lines if line["slope"] is not None]
        worst = max(sloped, key=lambda line: abs(line["slope"] - line["expected"]), default=None)
        named = (
            "" if worst is None else f"{worst['slope']:+.2f} for {worst['expected']:+g}, {worst['name'] or 'the model'}"
        )
        failed = sum(not line["pass"] for line in lines)
        rows.append([measure.replace("_", " "), f"{len(lines)}", f"{failed}" if failed else "none", named])
    body = f"<p>{escape(sentence)}</p>" + page.table(["measure", "slopes", "failed", "farthest off"], rows)
    if drawing := drawing_of(figure.with_suffix(".svg")):
        files = [replace_file(folder / "coordinate-check.svg", drawing.encode())]
        if picture := content_of(figure.with_suffix(".png"), follow=False):
            files.append(replace_file(folder / "coordinate-check.png", picture))
        caption = "Each line is relative to the smallest size and the slope expected of it: a right one is flat."
        body += _drawn(files, "c", caption)
    return Section(name="Coordinates", title="Coordinate check", body=body)


def _newest_check(folder: Path) -> tuple[Mapping[str, Any], Path] | None:
    """The newest check of a folder and where its figure lies: beside it. None where there is none of the right form.

    The figure that the file names is not asked for: the page goes to the ledger, and that could be any file.
    """
    file = max(folder.glob("*.json"), key=lambda file: file.lstat().st_mtime, default=None)
    if file is None:
        return None
    try:
        if (content := content_of(file, follow=False)) is None:
            raise ValueError("it can't be read, or is no file")
        data = json.loads(content)
        expect(_Check, data)
        json.dumps(data, ensure_ascii=False).encode()  # no page can hold half a character
        if data.get("control") is not None:
            expect(_Control, data["control"], "control")
    except (ValueError, RecursionError) as error:
        _logger.warning(
            "the page has no coordinate check, %s is none (%.200s): muxfer check makes it again", file, error
        )
        return None
    return data, file


def drawing_of(file: Path) -> str | None:
    """The SVG that lies there; None where none does."""
    text = (content_of(file, follow=False) or b"").decode(errors="replace")
    return text if "<svg" in text else None


def cost(records: Sequence[Record], context: Context) -> Section:
    """What the study took: trials, time, FLOPs and their share of the target's."""
    trials = [record for record in records if record.kind == "proxy"]
    outcomes = Counter(str(record.outcome) for record in trials)
    facts: dict[str, Any] = {
        "trials": f"{len(trials)} ({', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())})",
        "training": clock(sum(record.train_seconds for record in trials)),
    }
    if "wall_seconds" in context:
        facts["wall clock"] = clock(context["wall_seconds"])
    plan = context.get("plan", {})
    for name, key in (("FLOPs of the proxies", "proxy_flops"), ("FLOPs of the target", "target_flops")):
        if plan.get(key) is not None:
            facts[name] = f"{plan[key]:.3g}"
    shares = (("tuning cost", "tuning_ratio", "trials × parameters × samples"), ("", "tuning_ratio_flops", "FLOPs"))
    told = [f"{100 * plan[key]:.2g} % of the target's {what}" for _, key, what in shares if plan.get(key) is not None]
    if told:
        facts["share"] = ", ".join(told)
    if plan.get("hours") is not None:
        facts["planned"] = clock(3600 * plan["hours"])
    sizes = sorted({record.num_parameters for record in trials if record.num_parameters})
    if sizes:
        facts["parameters"] = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    if resumed := sum(record.resumed_at > 0 for record in trials):
        facts["resumed"] = f"{resumed}, from a checkpoint"
    if "command" in context:
        facts["command"] = context["command"]
    return Section(name="Cost", title="Cost", body=page.pairs(facts))


def environment(context: Context) -> Section | None:
    if not context.get("environment"):
        return None
    return Section(name="Environment", title="Environment", body=page.pairs(context["environment"]))


def every_trial(records: Sequence[Record]) -> Section:
    names = sorted({name for record in records for name in record.setting})
    header = ["key", *names, "replicate", "outcome", METRIC, "step", "seconds", "remarks"]
    rows = []
    for record in ordered(records):
        values = [record.setting.get(name, "") for name in names]
        settings = [value if isinstance(value, str) else shown(value) for value in values]
        metric = "" if record.metric is None else f"{record.metric:#.6g}"
        remarks = [record.kind] if record.kind != "proxy" else []
        remarks += [f"resumed at {record.resumed_at}"] if record.resumed_at else []
        remarks += [record.error] if record.error else []
        shared = [str(record.replicate), str(record.outcome), metric, str(record.step), f"{record.train_seconds:.1f}"]
        rows.append([record.key, *settings, *shared, "; ".join(remarks)])
    body = page.folded(f"{len(rows)} trials: key, setting, outcome, loss", page.table(header, rows))
    return Section(name="Every trial", title="Every trial", body=body)


def clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
