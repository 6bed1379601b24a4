"""What each command does: the concrete parts are built here, from the configuration, and joined.

Every function returns an Answer: the JSON object of its command (see the command line's contract), the same for a
person to read, and the exit code. Heavy libraries are imported where they are first needed.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.commands.report import write_report
from muxfer.commands.result import CommandResult
from muxfer.config.models import Declared
from muxfer.config.parse import parse_task
from muxfer.config.study import Config
from muxfer.config.task import to_plain
from muxfer.errors import NotAYes, StudyBusy, TrialsFailed
from muxfer.executors.base import Executor
from muxfer.files import content_of, validate_writable
from muxfer.ledger.tracking_uri import redact_uri
from muxfer.models.build import scale_plan
from muxfer.models.count import validate_forward
from muxfer.report.figures import replace_file
from muxfer.report.format import show_setting
from muxfer.study.loop import Ran, run_study
from muxfer.study.progress import Progress
from muxfer.study.recorded import best_of, expect_taken, judge, outside, records_of
from muxfer.study.resolve import PrintLine, Request, resolve, tracking_uri
from muxfer.study.retention import planned
from muxfer.study.rounds import proposing
from muxfer.study.search import is_finalist, searched
from muxfer.study.session import driving, open_ledger
from muxfer.trial import Outcome, Record, Trial, Verdict, content_hash

if TYPE_CHECKING:
    pass

FIGURES = (".png", ".svg", ".csv")


def sweep(
    name: str,
    overrides: Sequence[str],
    *,
    print_line: PrintLine,
    max_hours: float | None = None,
    require_transfer: bool = False,
    skip_if_running: bool = False,
) -> CommandResult:
    """Bring a study to its finished state, judge it and report."""
    began = time.monotonic()
    request = resolve(name, overrides)
    propose = proposing(request.config, fingerprint=request.fingerprint)
    trials = propose([])
    if isinstance(request.config.model, Declared):
        _check_models(trials)
    retention = planned(request.config, trials, folder=request.home / "trials", print_line=print_line)
    with (
        _study_folder(request, print_line) as is_new,
        ray_ahead(request, request.home, likely=is_new) as start_ray,
        open_ledger(request) as ledger,
    ):
        try:
            with driving(request, request.study, ledger, to_plain(request.config)) as lease:
                before = ledger.records(request.study)
                ran = run_study(
                    propose(before),
                    before,
                    study=request.study,
                    ledger=ledger,
                    lease=lease,
                    start_executor=start_ray,
                    folder=request.folder,
                    progress=Progress(),
                    more=propose,
                    deadline=None if max_hours is None else began + 3600 * max_hours,
                    retention=retention,
                )
                ledger.flush(request.config.ledger.patience_seconds)
                expect_taken(ledger, request.study, ran.records)
                trials = propose(ledger.records(request.study))
                left_out = outside(ledger, request.study, trials)
                records = records_of(ledger, request.study, trials)
                judged = judge(records, request.config, unfinished=ran.unfinished)
                page, stamp = request.home / "report.html", request.home / "report.of"
                shown = [[r.key, r.outcome, r.metric, r.run_id] for r in sorted(records, key=lambda r: r.key)]
                content = content_hash(shown).encode()  # another ledger, which has no page yet, has other runs
                if not page.is_file() or content_of(stamp) != content:
                    wall_seconds = time.monotonic() - began
                    page = write_report(
                        request, request.study, request.config, ledger, records, judged, wall_seconds=wall_seconds
                    )
                    ledger.attach([page, *sorted(f for f in request.home.iterdir() if f.suffix in FIGURES)])
                    replace_file(stamp, content)
        except StudyBusy as error:
            if not skip_if_running:
                raise
            nothing = {"trials": [], "ran": 0, "skipped": len(trials), "train_seconds": 0.0}
            unknown = dict.fromkeys(("best", "verdict", "report"))
            return CommandResult(
                data={"sweep": name, "skipped_because": str(error)} | nothing | unknown, text=str(error)
            )
    return _sweep_answer(request, trials, records, judged, ran, page, left_out, require_transfer=require_transfer)


@contextmanager
def _study_folder(request: Request, print_line: PrintLine) -> Iterator[bool]:
    """The study's folder; where the command made it and ends with an error before it is used, it goes again.

    Whether it came into being here: of drivers that start at once one alone starts Ray ahead. Eight Rays that start
    together on two cores starve, and the one that is needed dies with the others.
    """
    is_new = True
    try:
        request.home.mkdir(parents=True)
    except OSError:
        is_new = False
    validate_writable(request.home)
    print_line(
        f"study {request.study.label}: files in {request.home}, records in {redact_uri(tracking_uri(request.config))}"
    )
    try:
        yield is_new
    except BaseException:
        for folder in (request.home, request.folder) if is_new else ():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


def _check_models(trials: Sequence[Trial]) -> None:
    """Plan every model of the grid on the meta device: a class of others that can't be is refused at once.

    Of our own families the configuration is checked; planning them here too would cost each sweep 3 s of torch.
    """
    for task in {content_hash(trial.task["model"]): trial.task for trial in trials}.values():
        scale_plan(parse_task(task))
    validate_forward(parse_task(trials[0].task).model)


def _sweep_answer(
    request: Request,
    trials: Sequence[Trial],
    records: Sequence[Record],
    judged: Verdict,
    ran: Ran,
    page: Path,
    left_out: Sequence[str],
    *,
    require_transfer: bool,
) -> CommandResult:
    by_key = {record.key: record for record in records}
    best = best_of(records, request.config)
    failed = [record for record in records if record.outcome is Outcome.FAILED]
    data = {
        "sweep": request.name,
        "study": request.study.key,
        "trials": [
            {
                "key": trial.key,
                "setting": dict(trial.setting),
                "replicate": trial.replicate,
                "outcome": str(by_key[trial.key].outcome) if trial.key in by_key else None,
                "metric": by_key[trial.key].metric if trial.key in by_key else None,
                "step": by_key[trial.key].step if trial.key in by_key else 0,
                "resumed": trial.key in by_key and by_key[trial.key].resumed_at > 0,
                **({"error": error} if (error := by_key[trial.key].error if trial.key in by_key else None) else {}),
            }
            for trial in trials
        ],
        "ran": len(ran.records),
        "skipped": len(trials) - len(ran.records) - ran.unfinished,
        "unfinished": ran.unfinished,
        "train_seconds": round(ran.train_seconds, 3),
        "best": None if best is None else {"setting": dict(best.setting), "metric": best.metric},
        "verdict": judged.to_dict(),
        "report": str(page),
        "folder": str(request.home),
    }
    law, told = _told(records, judged, request.config)
    data |= {} if law is None else {"fit": law}
    if best is not None and is_finalist(request.config.search, best.records[0]):
        told += f"\nbest of the finalists: {show_setting(best.setting)}, validation loss {best.metric:.4f}"
    lines = [told, "", *left_out, f"report: {page}"]
    if failed:
        lines.append(f"{len(failed)} trials failed, the first: {failed[0].error}; type the same command to try again")
    if ran.unfinished:
        lines.append(f"{ran.unfinished} trials are still to run; type the same command to go on")
    exit_code = 0
    if failed:
        exit_code = TrialsFailed.exit_code
    elif require_transfer and judged.verdict != "transfers":
        exit_code = NotAYes.exit_code
    return CommandResult(data=data, text="\n".join(lines), exit_code=exit_code)


def _told(records: Sequence[Record], judged: Verdict, config: Config) -> tuple[dict[str, Any] | None, str]:
    """What a sweep ends with: its losses and the verdict, or of an isoFLOP study the laws, as JSON too."""
    if config.search.sampler != "isoflop":
        from muxfer.report.text import table_text

        return None, table_text(searched(config.search, records), judged)
    from muxfer.analysis.parametric_law import fit_parametric
    from muxfer.analysis.scaling_law import fit_isoflop
    from muxfer.commands.fit import fit_data, fit_lines
    from muxfer.study.isoflop import points_of

    points = points_of(records, config.task)
    found, parametric = fit_isoflop(points), fit_parametric(points)
    return fit_data(found, parametric, None), "\n".join(fit_lines(found, parametric, None))


@contextmanager
def ray_ahead(request: Request, home: Path, *, likely: bool) -> Iterator[Callable[[], Executor]]:
    """Ray on demand, for the study whose folder is `home`.

    It takes seconds to start: where work is likely it does so while the ledger is opened.
    """
    from muxfer.executors import ray_sessions

    ray_sessions.remove_abandoned()  # what a killed driver left must go even where nothing is left to run

    def start() -> Executor:
        from muxfer.executors.ray_tune import RayExecutor

        return RayExecutor(request.config.compute, folder=home)

    if not likely:
        yield start
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        started = pool.submit(start)
        taken = False
        if request.config.compute.slots is not None or request.config.compute.device != "auto":
            started.result()  # may be more than there is: say so before the ledger hears of the study

        def take() -> Executor:
            nonlocal taken
            taken = True
            return started.result()

        try:
            yield take
        finally:
            if not taken and started.exception() is None:
                started.result().close()
