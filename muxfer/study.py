"""The loop that brings a study to its finished state: skip what the ledger holds, run the rest, record, and be done.

It knows protocols only (Ledger, Lease, Executor), so the same loop drives Ray and a plain process, MLflow and a test's
ledger. Run it again and there is nothing to do: that is what makes it safe under kill -9, cron and requeue.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from muxfer import plugins
from muxfer.errors import StudyBusy
from muxfer.ledger import Lease, Ledger
from muxfer.plan import remaining
from muxfer.trial import Record, Study, Trial
from muxfer.worker import Executor, Job, Report


class Progress(Protocol):
    """What a person sees while it runs."""

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None: ...

    def update(self, report: Report) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one call of `run_study` did: the records of what it ended, what it left, and its seconds of training."""

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
    deadline: float | None = None,
) -> Ran:
    """Run the trials that no settled record answers, and write every point and record to the ledger.

    `folder` holds one folder a study. `deadline` (of time.monotonic) stops in order: no new trial starts after it, and
    those in flight stay resumable. Raises StudyBusy when another driver took the lease over, TrialsFailed when the
    machinery under the trials died.
    """
    todo = remaining(trials, records)
    if not todo:
        return Ran(records=(), unfinished=0)
    executor = start_executor()
    by_key = {trial.key: trial for trial in todo}
    ran: dict[str, Record] = {}
    begun: set[str] = set()
    seconds: dict[str, float] = {}
    progress.start(trials, records, slots=executor.slots)
    try:
        executor.submit(
            [
                Job(trial=t, folder=str(trial_folder(folder, study, t)), epoch=lease.epoch, plugins=plugins.allowed())
                for t in todo
            ]
        )
        while len(ran) < len(todo):
            if not lease.held():
                raise StudyBusy(f"another driver took study {study.label} over; this one stops and writes no more")
            if deadline is not None and time.monotonic() > deadline:
                break
            for report in executor.reports(0.2):
                if report.key not in begun:
                    begun.add(report.key)
                    ledger.begin(by_key[report.key])
                ledger.report(report.key, report.points)
                seconds[report.key] = report.train_seconds
                if report.record is not None:
                    ran[report.key] = report.record
                    ledger.settle(report.record)
                progress.update(report)
    except BaseException:
        executor.kill()
        raise
    finally:
        progress.stop()
    executor.close()
    return Ran(records=tuple(ran.values()), unfinished=len(todo) - len(ran), train_seconds=sum(seconds.values()))
