"""The page of a study, for people: the verdict and the best setting in words first, then the evidence for them."""

from collections.abc import Sequence
from pathlib import Path

from muxfer.files import replace_file
from muxfer.report import appendix, sections
from muxfer.report.html import html
from muxfer.report.sections import Context
from muxfer.report.summary import summary
from muxfer.trial import Record, Verdict


def write(
    study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict, *, context: Context | None = None
) -> Path:
    """Write FOLDER/report.html, and each of its figures as PNG, SVG and CSV beside it. Each file is replaced whole."""
    context = context or {}
    parts = [
        sections.scaling_law(study_name, folder, context),
        sections.u_curves(study_name, folder, records, verdict),
        sections.search(folder, records, verdict, context),
        sections.optimum(folder, records, verdict),
        sections.proxies(folder, context),
        sections.training(folder, records, verdict, context.get("points", {})),
        appendix.coordinates(folder, context),
        appendix.cost(records, context),
        appendix.environment(context),
        appendix.every_trial(records),
    ]
    shown = [part for part in parts if part is not None]
    top = summary(study_name, records, verdict, context)
    text = html("study.html", title=f"{study_name} · muxfer", sections=shown, **top)
    return replace_file(folder / "report.html", text.encode())
