"""The page of a launched target."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import Table as Losses
from muxfer.analysis.cells import best_losses, settled_table, shown
from muxfer.files import content_of, replace_file
from muxfer.report.appendix import drawing_of
from muxfer.report.blocks import Figure, Headline, Pairs, Section, Table, inline
from muxfer.report.format import METRIC, num_decimals, show_time
from muxfer.report.html import html
from muxfer.trial import Record, Verdict


def write_target(
    study_name: str,
    folder: Path,
    target: Record,
    records: Sequence[Record],
    verdict: Verdict,
    *,
    samples: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    band: Path | None = None,
) -> Path:
    """Write FOLDER/target.html: what the target reached, beside each proxy's best, its samples and its lineage.
    `samples` is a PNG; the page holds a copy of it. `band` is the SVG of the target's loss in the predicted band. The
    page leaves out what is missing.
    """
    losses = settled_table(records, verdict.axis, verdict.hp)
    sections = []
    if samples is not None and (content := content_of(samples, follow=False)) is not None:
        png = base64.b64encode(content).decode()
        sections.append(_section("Samples", Figure(png=png, caption="Drawn from the averaged weights.")))
    sections.append(_section("Against its proxies", _proxies(target, losses, verdict)))
    if band is not None and (drawing := drawing_of(band)) is not None:
        caption = (
            "Training loss of the target, and what its proxies predict of it: above the band for long it is halted."
            " Also as target-band.png, .svg and .csv in the target's folder."
        )
        sections.append(_section("Loss, as predicted", Figure(svg=inline(drawing, "b"), caption=caption)))
    if lineage:
        sections.append(_section("Lineage", Pairs(values=lineage)))
    headline = _headline(study_name, target, losses)
    text = html("target.html", title=f"{study_name} target · muxfer", sections=sections, headline=headline)
    return replace_file(folder / "target.html", text.encode())


def _section(title: str, block: Figure | Table | Pairs) -> Section:
    return Section(name=title, title=title, blocks=[block])


def _headline(study_name: str, target: Record, losses: Losses) -> Headline:
    lowest = min((best for best in best_losses(losses).values() if best is not None), default=None)
    decimals = num_decimals(losses)
    if target.metric is None:
        title, tone = f"The target {target.outcome} at step {target.step}.", "drifts"
    elif lowest is not None and target.metric < lowest:
        title, tone = f"The target is better than every proxy: {METRIC} {target.metric:.{decimals}f}.", "transfers"
    else:
        title, tone = f"The target reached {METRIC} {target.metric:.{decimals}f}.", "abstains"
    size = f" {target.num_parameters:,} parameters." if target.num_parameters else ""
    why = f"{show_time(target.train_seconds)} of training, {target.step} steps.{size}"
    kicker = f"muxfer · target of {study_name}"
    return Headline(kicker=kicker, title=title, why=why, tone=tone, badge=str(target.outcome))


def _proxies(target: Record, losses: Losses, verdict: Verdict) -> Table:
    """The best trial at each axis value and what the target gains on it; the target itself is the last row."""
    decimals = num_decimals(losses)
    rows = []
    for axis, best in best_losses(losses).items():
        cells = [cell for cell in losses[axis].values() if best is not None and cell.mean == best]
        hp, step = (shown(cells[0].hp), str(cells[0].step)) if cells else ("", "")
        rows.append([f"proxy, {verdict.axis} {axis:g}", hp, step, *_against(best, target.metric, decimals)])
    own = target.setting.get(verdict.hp)
    own_hp = shown(float(own)) if isinstance(own, int | float) else str(own or "")
    name = f"target, {verdict.axis} {target.setting[verdict.axis]}" if verdict.axis in target.setting else "target"
    reached = str(target.outcome) if target.metric is None else f"{target.metric:.{decimals}f}"
    rows.append([name, own_hp, str(target.step), reached, ""])
    return Table(header=["", verdict.hp, "step", METRIC, "target against it"], rows=rows, last_strong=True)


def _against(best: float | None, metric: float | None, decimals: int) -> tuple[str, str]:
    """A proxy's loss, and the target's relative to it."""
    if best is None:
        return "none finite", ""
    relative = "" if metric is None or best == 0 else f"{100 * (metric - best) / abs(best):+.1f} %"
    return f"{best:.{decimals}f}", relative
