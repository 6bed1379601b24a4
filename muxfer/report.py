"""The pages of a study, for people: what a sweep found, and what the launched target reached.

A page answers first and shows its evidence below: verdict and best setting in words, then the U-curves, the losses,
optimum and regret, training curves, cost, every trial.
"""

import base64
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from muxfer import page
from muxfer.analysis.transferability import Table, best_setting, percent, settled_table, shown
from muxfer.figures import palette, replace_file, training_curves_svg, u_curves_figure
from muxfer.tables import (
    METRIC,
    best_losses,
    cell_text,
    drift_text,
    grid_optimum,
    hp_values,
    log2_text,
    mean_of,
    num_decimals,
    ordered,
)
from muxfer.trial import Point, Record, Verdict


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


def write(
    study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict, *, context: Context | None = None
) -> Path:
    """FOLDER/report.html, and beside it u-curves.png, .svg and .csv. Each file is replaced whole."""
    context = context or {}
    paths = u_curves_figure(
        records, verdict, folder / "u-curves", title=f"{study_name}: {verdict.hp} by {verdict.axis}"
    )
    curves = training_curves_svg(records, verdict, context.get("points", {}))
    table = settled_table(records, verdict.axis, verdict.hp)
    sections = [
        _answer(study_name, records, verdict, context),
        page.section(
            f"{METRIC.capitalize()} by {verdict.hp}",
            page.figure(page.inline(paths[1].read_text(), "u"), _curves_caption(verdict)),
        ),
        page.section("The numbers", _loss_table(table, verdict)),
        page.section("Optimum and regret", _optimum_table(table, verdict)),
        page.section(
            "Training curves",
            page.figure(
                page.inline(curves, "t"),
                "One replicate a setting; the thick curve is the grid's optimum; crosses show where a run diverged.",
            ),
        )
        if curves
        else "",
        page.section("Cost", _cost(records, context)),
        page.section("Environment", page.pairs(context["environment"])) if context.get("environment") else "",
        page.section("Every trial", _trials(records)),
    ]
    shades = {**dict(palette(len(table))), **dict(palette(len(hp_values(table))))}
    return replace_file(folder / "report.html", page.html(f"{study_name} · muxfer", sections, shades).encode())


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
    return replace_file(folder / "target.html", page.html(f"{study_name} target · muxfer", sections, {}).encode())


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
    bests = best_losses(table)
    lowest = min((best for best in bests.values() if best is not None), default=None)
    decimals = num_decimals(table)
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
    parts = [page.headline(f"muxfer · target of {study_name}", headline, why, tone, badge)]
    if samples is not None:
        picture = base64.b64encode(samples.read_bytes()).decode()
        image = f'<img class="samples" alt="samples of the target" src="data:image/png;base64,{picture}">'
        parts.append(page.section("Samples", page.figure(image, "Drawn from the averaged weights.")))
    parts.append(page.section("Against its proxies", page.table(header, rows, last_strong=True)))
    if lineage:
        parts.append(page.section("Lineage", page.pairs(lineage)))
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
        loss = f"{METRIC} {best.metric:.{num_decimals(table)}f} at {axis} {best.setting[axis]}{seeds}"
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
    return (
        page.headline(f"muxfer · sweep {study_name}", headline, why, verdict.verdict, verdict.verdict) + about + cards
    )


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
    note = f"{METRIC.capitalize()}{mean_of(table)}. ★ best of its column; shaded: within 2 % of it."
    return f"<div class='scroll'><table>{''.join(lines)}</table></div><p class='note'>{escape(note)}</p>"


def _optimum_table(table: Table, verdict: Verdict) -> str:
    regrets = {regret.from_: regret for regret in verdict.regret}
    rows = []
    for axis, optimum in verdict.optimum.items():
        regret = regrets.get(axis)
        cost = "" if regret is None else "diverges" if regret.relative is None else percent(regret.relative)
        grid = "none finite" if optimum.grid is None else shown(optimum.grid)
        fitted = "" if optimum.fitted is None else log2_text(optimum.fitted)
        rows.append([f"{axis:g}", grid, fitted, "the largest" if table and axis == max(table) else cost])
    largest = f"{verdict.axis} {max(table):g}" if table else "the largest"
    header = [verdict.axis, f"best {verdict.hp} of the grid", "fitted", f"its cost at {largest}"]
    drift = verdict.drift_per_doubling.get("value")
    note = (
        f"The optimum moves by {drift_text(drift, table, verdict)}." if drift is not None else "No drift can be told."
    )
    return page.table(header, rows) + f"<p class='note'>{escape(note)}</p>"


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
    return page.pairs(pairs)


def _trials(records: Sequence[Record]) -> str:
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
    summary = f"{len(rows)} trials: key, setting, outcome, loss"
    return f"<details><summary>{summary}</summary>{page.table(header, rows)}</details>"


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
