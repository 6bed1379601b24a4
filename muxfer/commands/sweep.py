"""`muxfer sweep`: bring a study to its finished state, judge it, and write its page."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muxfer.commands.report import write_report
from muxfer.commands.result import CommandResult
from muxfer.config.models import Declared
from muxfer.config.parse import parse_task
from muxfer.config.study import StudyKind
from muxfer.errors import NotConfirmed, StudyBusy, TrialsFailed
from muxfer.executors.ray_on_demand import ray_on_demand
from muxfer.files import content_of, replace_file, validate_writable
from muxfer.ledger.tracking_uri import redact_uri
from muxfer.report.format import show_setting
from muxfer.study.loop import StudyRun
from muxfer.study.recorded import RecordedStudy
from muxfer.study.resolve import PrintLine, Request, resolve, tracking_uri
from muxfer.study.retention import plan_retention
from muxfer.study.rounds import proposing
from muxfer.study.search import is_finalist, searched
from muxfer.study.session import Session, drive, open_ledger
from muxfer.trial import Outcome, Record, Trial, VerdictKind, content_hash


def sweep(
    name: str,
    overrides: Sequence[str],
    *,
    print_line: PrintLine,
    max_hours: float | None = None,
    require_transfer: bool = False,
    skip_if_running: bool = False,
) -> CommandResult:
    """Bring a study to its end, in order after `max_hours`. `skip_if_running` returns instead of raising StudyBusy."""
    began = time.monotonic()
    request = resolve(name, overrides)
    propose = proposing(request.config, fingerprint=request.fingerprint)
    trials = propose([])
    if isinstance(request.config.model, Declared):
        _validate_models(trials)
    retention = plan_retention(request.config, trials, folder=request.files.trials, print_line=print_line)
    deadline = None if max_hours is None else began + 3600 * max_hours
    with (
        _study_folder(request, print_line) as is_new,
        ray_on_demand(request.config.compute, request.files.path, likely=is_new) as start_ray,
        open_ledger(request) as ledger,
    ):
        try:
            with drive(request, ledger=ledger) as session:
                seen = session.records()
                ran = session.run(
                    propose(seen), seen, start_executor=start_ray, more=propose, deadline=deadline, retention=retention
                )
                records = session.records()
                study = RecordedStudy(
                    study=session.study, config=request.config, trials=propose(records), all_records=records
                )
                page = _write_page(session, study, began=began)
        except StudyBusy as error:
            if not skip_if_running:
                raise
            return _skipped(name, trials, str(error))
    return _result(request, study, ran, page, require_transfer=require_transfer)


def _validate_models(trials: Sequence[Trial]) -> None:
    """Plan every model of the grid on the meta device, so that a class of the user's own is refused at once. Only the
    configuration of our own families is validated: planning them too would cost each sweep 3 s of torch.
    """
    from muxfer.models.build import scale_plan
    from muxfer.models.count import validate_forward

    for task in {content_hash(trial.task["model"]): trial.task for trial in trials}.values():
        scale_plan(parse_task(task))
    validate_forward(parse_task(trials[0].task).model)


@contextmanager
def _study_folder(request: Request, print_line: PrintLine) -> Iterator[bool]:
    """Make the study's folder. Yield whether it is new; a new one is removed if the command fails before it is used.
    Among drivers that start at once, one alone makes the folder, and that one starts Ray ahead. Eight Rays that start
    together on two cores starve, and the one that is needed dies with the others.
    """
    home, is_new = request.files.path, True
    try:
        home.mkdir(parents=True)
    except OSError:
        is_new = False
    validate_writable(home)
    print_line(f"study {request.study.label}: files in {home}, records in {redact_uri(tracking_uri(request.config))}")
    try:
        yield is_new
    except BaseException:
        for folder in (home, request.folder) if is_new else ():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


def _write_page(session: Session, study: RecordedStudy, *, began: float) -> Path:
    """Write and record the page, unless the one in the folder shows the same records."""
    files = session.files
    shown = [[r.key, r.outcome, r.metric, r.run_id] for r in sorted(study.records, key=lambda r: r.key)]
    content = content_hash(shown).encode()  # another ledger, which has no page yet, has other runs
    if not files.report.is_file() or content_of(files.report_content) != content:
        write_report(session.request, study, session.ledger, wall_seconds=time.monotonic() - began)
        session.ledger.attach([files.report, *files.figures])
        replace_file(files.report_content, content)
    return files.report


def _skipped(name: str, trials: Sequence[Trial], why: str) -> CommandResult:
    nothing = {"trials": [], "ran": 0, "skipped": len(trials), "train_seconds": 0.0}
    unknown = dict.fromkeys(("best", "verdict", "report"))
    return CommandResult(data={"sweep": name, "skipped_because": why} | nothing | unknown, text=why)


def _result(
    request: Request, study: RecordedStudy, ran: StudyRun, page: Path, *, require_transfer: bool
) -> CommandResult:
    best = study.best
    failed = [record for record in study.records if record.outcome is Outcome.FAILED]
    by_key = {record.key: record for record in study.records}
    data = {
        "sweep": request.name,
        "study": request.study.key,
        "trials": [_trial_data(trial, by_key.get(trial.key)) for trial in study.trials],
        "ran": len(ran.records),
        "skipped": len(study.trials) - len(ran.records) - ran.unfinished,
        "unfinished": ran.unfinished,
        "train_seconds": round(ran.train_seconds, 3),
        "best": None if best is None else {"setting": dict(best.setting), "metric": best.metric},
        "verdict": study.verdict.to_dict(),
        "report": str(page),
        "folder": str(request.files.path),
    }
    fit, conclusion = _conclusion(study)
    data |= {} if fit is None else {"fit": fit}
    if best is not None and is_finalist(request.config.search, best.records[0]):
        conclusion += f"\nbest of the finalists: {show_setting(best.setting)}, validation loss {best.metric:.4f}"
    lines = [conclusion, "", *study.notes, f"report: {page}"]
    if failed:
        lines.append(f"{len(failed)} trials failed, the first: {failed[0].error}; type the same command to try again")
    if ran.unfinished:
        lines.append(f"{ran.unfinished} trials are still to run; type the same command to go on")
    doubtful = require_transfer and study.verdict.verdict is not VerdictKind.TRANSFERS
    exit_code = TrialsFailed.exit_code if failed else NotConfirmed.exit_code if doubtful else 0
    return CommandResult(data=data, text="\n".join(lines), exit_code=exit_code)


def _trial_data(trial: Trial, record: Record | None) -> dict[str, Any]:
    """One trial in the JSON; `record` is None while it is still to run."""
    data: dict[str, Any] = {"key": trial.key, "setting": dict(trial.setting), "replicate": trial.replicate}
    if record is None:
        return data | {"outcome": None, "metric": None, "step": 0, "resumed": False}
    result = {"outcome": str(record.outcome), "metric": record.metric, "step": record.step}
    return data | result | {"resumed": record.resumed_at > 0} | ({"error": record.error} if record.error else {})


def _conclusion(study: RecordedStudy) -> tuple[dict[str, Any] | None, str]:
    """The losses and the verdict as text; for an isoFLOP study the scaling laws instead, as JSON too."""
    if study.config.search.kind is not StudyKind.ISOFLOP:
        from muxfer.report.text import table_text

        return None, table_text(searched(study.config.search, study.records), study.verdict)
    from muxfer.analysis.laws.parametric_law import fit_parametric
    from muxfer.analysis.laws.scaling_law import fit_isoflop
    from muxfer.commands.fit import fit_data, fit_lines
    from muxfer.study.isoflop import points_of

    points = points_of(study.records, study.config.task)
    fit, parametric = fit_isoflop(points), fit_parametric(points)
    return fit_data(fit, parametric, None), "\n".join(fit_lines(fit, parametric, None))
