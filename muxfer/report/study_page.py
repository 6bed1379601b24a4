"""The pages of a study, for people: what a sweep found, and what the launched target reached.

A page answers first and shows its evidence below (`muxfer.sections`): verdict and best setting in words, then the
U-curves, optimum and regret, what the search tried, training curves, cost, every trial.
"""

from collections.abc import Sequence
from pathlib import Path

from muxfer.report import appendix, html, sections
from muxfer.report.figures import replace_file
from muxfer.report.sections import Context
from muxfer.report.summary import answer
from muxfer.report.target_page import target_section, write_target
from muxfer.trial import Record, Verdict

__all__ = ["Context", "target_section", "write", "write_target"]


def write(
    study_name: str, folder: Path, records: Sequence[Record], verdict: Verdict, *, context: Context | None = None
) -> Path:
    """FOLDER/report.html, and beside it each of its figures as PNG, SVG and CSV. Each file is replaced whole."""
    context = context or {}
    parts = [
        sections.law(study_name, folder, context),
        sections.u_curves(study_name, folder, records, verdict),
        sections.search(folder, records, verdict, context),
        sections.optimum(folder, records, verdict),
        sections.proxies(folder, context),
        sections.training(folder, records, verdict, context.get("points", {})),
        appendix.coordinates(folder, context),
        appendix.cost(records, context),
        sections.environment(context),
        appendix.every_trial(records),
    ]
    head = answer(study_name, records, verdict, context)
    text = html.html(f"{study_name} · muxfer", head, [part for part in parts if part is not None])
    return replace_file(folder / "report.html", text.encode())
