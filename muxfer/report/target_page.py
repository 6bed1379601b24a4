"""The target's page and its section."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.cells import best_losses, settled_table, shown
from muxfer.files import content_of
from muxfer.report import html
from muxfer.report.figures import replace_file
from muxfer.report.format import METRIC, num_decimals, show_time
from muxfer.report.sections import drawing_of
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
    """FOLDER/target.html: what the launched target reached, beside each proxy's best, its samples and where it is from.

    `samples` is a PNG; the page holds a copy of it. `band` is the SVG of its loss in the band that was predicted. What
    is not there is left out.
    """
    text = target_section(study_name, target, records, verdict, samples=samples, lineage=lineage, band=band)
    return replace_file(folder / "target.html", html.html(f"{study_name} target · muxfer", text).encode())


def target_section(
    study_name: str,
    target: Record,
    records: Sequence[Record],
    verdict: Verdict,
    *,
    samples: Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    band: Path | None = None,
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
    why = f"{show_time(target.train_seconds)} of training, {target.step} steps.{size}"
    badge = str(target.outcome)
    parts = [html.headline(f"muxfer · target of {study_name}", headline, why, tone, badge)]
    if samples is not None and (content := content_of(samples, follow=False)) is not None:
        picture = base64.b64encode(content).decode()
        image = f'<img class="samples" alt="samples of the target" src="data:image/png;base64,{picture}">'
        parts.append(html.section("Samples", html.figure(image, "Drawn from the averaged weights.")))
    parts.append(html.section("Against its proxies", html.table(header, rows, last_strong=True)))
    if band is not None and (drawing := drawing_of(band)) is not None:
        caption = (
            "Training loss of the target, and what its proxies predict of it: above the band for long it is halted."
            " Also as target-band.png, .svg and .csv in the target's folder."
        )
        parts.append(html.section("Loss, as predicted", html.figure(html.inline(drawing, "b"), caption)))
    if lineage:
        parts.append(html.section("Lineage", html.pairs(lineage)))
    return "".join(parts)


def _against(best: float | None, metric: float | None, decimals: int) -> tuple[str, str]:
    if best is None:
        return "none finite", ""
    relative = "" if metric is None or best == 0 else f"{100 * (metric - best) / abs(best):+.1f} %"
    return f"{best:.{decimals}f}", relative
