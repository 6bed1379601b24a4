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
from muxfer.config.study import Config
from muxfer.files import validate_writable
from muxfer.ledger.base import Ledger
from muxfer.study.recorded import judge, recorded, records_of
from muxfer.study.resolve import Request, resolve
from muxfer.study.search import searched
from muxfer.study.session import open_ledger
from muxfer.study.trials import remaining
from muxfer.trial import Record, Study, Verdict

if TYPE_CHECKING:
    from muxfer.analysis.proxy_size import ProxyFront

MAX_CURVES = 200
"""Trials up to which a page shows their training curves: reading one takes some 10 ms."""


def write_report(
    request: Request,
    study: Study,
    config: Config,
    ledger: Ledger,
    records: Sequence[Record],
    judged: Verdict,
    *,
    wall_seconds: float | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Path:
    """The study's figures and page; training curves are left out where reading them would take long."""
    from muxfer.report import study_page as reporting
    from muxfer.study.optuna_search import importances

    public = [override for override in request.overrides if not override.lstrip("+").startswith("ledger")]
    again = " ".join(shlex.quote(word) for word in (request.name, *public))
    context: reporting.Context = {
        "description": request.description,
        "command": f"muxfer sweep {again}",
        "next_command": f"muxfer {'fit' if config.search.sampler == 'isoflop' else 'transfer'} {again}",
        "environment": environment(),
        "check": request.folder / f"check-{request.name}",
    }
    if config.search.sampler == "isoflop":
        from muxfer.analysis.scaling_law import fit_isoflop
        from muxfer.study.isoflop import points_of

        context["fit"] = fit_isoflop(points_of(records, config.task))
    elif found := importances(records, config.search):
        context["importances"] = found
    if config.search.sampler == "grid" and (front := _front(records, config)).candidates:
        context["front"] = front
    if costs is not None:
        context["plan"] = costs
    if len(records) <= MAX_CURVES:
        context["points"] = ledger.curves(study, "train_loss")
    if wall_seconds is not None:
        context["wall_seconds"] = wall_seconds
    home = request.folder / study.label
    return reporting.write(request.name, home, searched(config.search, records), judged, context=context)


def _front(records: Sequence[Record], config: Config) -> "ProxyFront":
    """What each task of the study costs, in parameters x samples, and what its choice loses at the largest."""
    from muxfer.analysis.proxy_size import parameters_times_samples, proxy_front

    return proxy_front(records, hp=config.search.hp, cost=parameters_times_samples(config.training.batch_size))


def environment() -> dict[str, str]:
    """What the numbers were made with: versions and cores. No names of hosts, users or folders."""
    packages = ("muxfer", "torch", "ray", "optuna", "mlflow", "hydra-core")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **versions, "cores": str(os.cpu_count())}


def report(name: str, overrides: Sequence[str]) -> CommandResult:
    """Write a recorded study's figures and page again, with what the study and its target cost."""
    from muxfer.commands.plan import costs

    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study, config, trials = recorded(request, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(remaining(trials, records)))
        validate_writable(request.folder / study.label)
        spent, _ = costs(replace(request, config=config, study=study))
        page = write_report(request, study, config, ledger, records, judged, costs=spent)
    return CommandResult(data={"report": str(page)}, text=f"report: {page}")
