"""The loop that brings a study to its finished state: skip what the ledger holds, run the rest, record, ask for more.

It knows protocols only (Ledger, Lease, Executor), so the same loop drives Ray and a plain process, MLflow and a test's
ledger. Run it again and there is nothing to do: that is what makes it safe under kill -9, cron and requeue.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muxfer.errors import StudyBusy, TrialsFailed
from muxfer.executors.base import Executor, TrialJob, TrialUpdate
from muxfer.ledger.base import Lease, Ledger
from muxfer.models import plugins
from muxfer.study.retention import Retention
from muxfer.study.trials import remaining
from muxfer.trial import Record, Study, Trial


class Progress(Protocol):
    """What a person sees while it runs."""

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None: ...

    def more(self, trials: Sequence[Trial]) -> None:
        """All trials that are known by now, when a round is over."""

    def update(self, report: TrialUpdate) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one call of `run_study` did: the records of what it ended, what it left, and its seconds of training.

    `unfinished` counts the known trials that it left: a search that learns would ask for more after them.
    """

    records: tuple[Record, ...]
    unfinished: int
    train_seconds: float = 0.0


def trial_folder(folder: Path, study: Study, trial: Trial) -> Path:
    """Where a trial's attempts and checkpoints lie."""
    return folder / study.label / "trials" / trial.key


def run_study(
    trials: Sequence[Trial],
    records: Sequence[Record],
    *,
    study: Study,
    ledger: Ledger,
    lease: Lease,
    start_executor: Callable[[], Executor],
    folder: Path,
    progress: Progress,
    more: Callable[[Sequence[Record]], Sequence[Trial]] | None = None,
    deadline: float | None = None,
    retention: Retention | None = None,
) -> Ran:
    """Run the trials that no settled record answers, and write every point and record to the ledger.

    `more` is asked with all records once the trials are settled: it returns them and the next round's, or them alone
    at the end. None: there is one round. A round with a failed trial is the last one, for the next would not be what
    it should: run it again. `folder` holds one folder a study. `deadline` (of time.monotonic) stops in order: no new
    trial starts after it, and those in flight stay resumable. `retention` decides which checkpoints stay of trials that
    are over; None: all that their workers kept. Raises StudyBusy when another driver took the lease
    over, TrialsFailed when the machinery under the trials died, or a trial was halted.
    """
    if retention is not None:
        retention.begin(records, epoch=lease.epoch)
    todo = remaining(trials, records)
    if not todo:
        return Ran(records=(), unfinished=0)
    executor = start_executor()
    ran: dict[str, Record] = {}
    seconds: dict[str, float] = {}
    progress.start(trials, records, slots=executor.slots)
    try:
        while todo:
            jobs = {
                t.key: TrialJob(
                    trial=t, folder=str(trial_folder(folder, study, t)), epoch=lease.epoch, plugins=plugins.allowed()
                )
                for t in todo
            }
            executor.submit([*jobs.values()])
            while not jobs.keys() <= ran.keys():
                if not lease.held():
                    raise StudyBusy(f"another driver took study {study.label} over; this one stops and writes no more")
                if deadline is not None and time.monotonic() > deadline:
                    more = None
                    break
                for report in executor.updates(0.2):
                    if report.key not in seconds:
                        ledger.begin(jobs[report.key].trial)
                    ledger.report(report.key, report.points)
                    seconds[report.key] = report.train_seconds
                    if report.record is not None:
                        ran[report.key] = report.record
                        ledger.settle(report.record)
                        if retention is not None:
                            retention.settle(report.record, running=seconds.keys() - ran.keys())
                    progress.update(report)
                    if report.halted is not None:
                        raise TrialsFailed(report.halted)
            if more is None or not all(record.outcome.settled for record in ran.values()):
                break
            trials = more([*records, *ran.values()])
            todo = remaining(trials, [*records, *ran.values()])
            progress.more(trials)
    except BaseException:
        executor.kill()
        raise
    finally:
        progress.stop()
    executor.close()
    left = [trial for trial in remaining(trials, [*records, *ran.values()]) if trial.key not in ran]
    return Ran(records=tuple(ran.values()), unfinished=len(left), train_seconds=sum(seconds.values()))
