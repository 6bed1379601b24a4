"""`muxfer report`: a study's figures and page, from the ledger."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.commands.result import CommandResult
from muxfer.config.study import StudyKind
from muxfer.files import validate_writable
from muxfer.ledger.base import Ledger
from muxfer.study.recorded import RecordedStudy, read_study
from muxfer.study.resolve import Request, resolve
from muxfer.study.search import searched
from muxfer.study.session import open_ledger

if TYPE_CHECKING:
    from muxfer.analysis.proxy_size import ProxyFront

MAX_CURVES = 200  # trials up to which a page shows their training curves: reading one takes some 10 ms


def report(name: str, overrides: Sequence[str]) -> CommandResult:
    """Write a recorded study's figures and page again, with what the study and its target cost."""
    from muxfer.commands.plan import costs

    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study = read_study(request, ledger)
        validate_writable(request.files_of(study.study).path)
        plan, _ = costs(replace(request, config=study.config, study=study.study))
        page = write_report(request, study, ledger, costs=plan)
    return CommandResult(data={"report": str(page)}, text=f"report: {page}")


def write_report(
    request: Request,
    study: RecordedStudy,
    ledger: Ledger,
    *,
    wall_seconds: float | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Path:
    """Write the study's figures and page. Training curves are left out where reading them would take long."""
    from muxfer.report import study_page
    from muxfer.report.sections import Context

    search, records = study.config.search, study.records
    command, next_command = _commands(request, search.kind)
    context: Context = {
        "description": request.description,
        "command": command,
        "next_command": next_command,
        "environment": environment(),
        "check": request.folder / f"check-{request.name}",
    }
    if search.kind is StudyKind.ISOFLOP:
        from muxfer.analysis.laws.scaling_law import fit_isoflop
        from muxfer.study.isoflop import points_of

        context["fit"] = fit_isoflop(points_of(records, study.config.task))
    else:
        from muxfer.study.optuna_search import importances

        if shares := importances(records, search):
            context["importances"] = shares
    if search.kind is StudyKind.GRID and (front := _front(study)).candidates:
        context["front"] = front
    if costs is not None:
        context["plan"] = costs
    if len(records) <= MAX_CURVES:
        context["points"] = ledger.curves(study.study, "train_loss")
    if wall_seconds is not None:
        context["wall_seconds"] = wall_seconds
    home = request.files_of(study.study).path
    return study_page.write(request.name, home, searched(search, records), study.verdict, context=context)


def _commands(request: Request, kind: StudyKind) -> tuple[str, str]:
    """What a reader types to run the study again, and what to type next. The ledger's overrides are not shown."""
    public = [override for override in request.overrides if not override.lstrip("+").startswith("ledger")]
    again = " ".join(shlex.quote(word) for word in (request.name, *public))
    next_verb = "fit" if kind is StudyKind.ISOFLOP else "transfer"
    return f"muxfer sweep {again}", f"muxfer {next_verb} {again}"


def _front(study: RecordedStudy) -> "ProxyFront":
    """What each task of the study costs, in parameters x samples, and what its choice loses at the largest."""
    from muxfer.analysis.proxy_size import parameters_times_samples, proxy_front

    cost = parameters_times_samples(study.config.training.batch_size)
    return proxy_front(study.records, hp=study.config.search.hp, cost=cost)


def environment() -> dict[str, str]:
    """The versions and the number of cores that the results were made with. No names of hosts, users or folders."""
    versions = {}
    for package in ("muxfer", "torch", "ray", "optuna", "mlflow", "hydra-core"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **versions, "cores": str(os.cpu_count())}
