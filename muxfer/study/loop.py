"""Run what a study lacks: give trials to the executor, and pass each update of a worker on to the ledger.

It knows protocols only (Ledger, Lease, Executor, Progress). So one loop drives Ray, a single process and a test's
ledger. A finished study has nothing to run: that makes the loop safe under kill -9, cron and requeue.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from muxfer.errors import StudyBusy, TrialsFailed
from muxfer.executors.base import Executor, TrialJob, TrialUpdate
from muxfer.files import StudyFolder
from muxfer.ledger.base import Lease, Ledger
from muxfer.models import plugins
from muxfer.study.retention import Retention
from muxfer.study.trials import remaining
from muxfer.trial import Record, Study, Trial

UPDATE_SECONDS = 0.2  # how long the loop waits for updates before it looks at the lease and the deadline again


class Progress(Protocol):
    """What a person sees while a study runs."""

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None: ...

    def more(self, trials: Sequence[Trial]) -> None:
        """All trials that are known at the end of a round."""

    def update(self, update: TrialUpdate) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """What one call of `run_study` did: the records of the trials that ended, and its seconds of training. `unfinished`
    counts the known trials that are still to run. A search that learns would propose more after them.
    """

    records: tuple[Record, ...]
    unfinished: int
    train_seconds: float = 0.0


def run_study(
    trials: Sequence[Trial],
    records: Sequence[Record],
    *,
    study: Study,
    ledger: Ledger,
    lease: Lease,
    files: StudyFolder,
    start_executor: Callable[[], Executor],
    progress: Progress,
    more: Callable[[Sequence[Record]], Sequence[Trial]] | None = None,
    deadline: float | None = None,
    retention: Retention | None = None,
) -> StudyRun:
    """Run the trials without a settled record, and write every point and record to the ledger.

    `more` takes all records at the end of a round. It returns all trials, with those of the next round if there is
    one. None: there is one round. A round with a failed trial is the last: the next would depend on its result.
    `deadline` (of time.monotonic) stops in order: no new trial starts, and trials in flight stay resumable.
    `retention` decides which checkpoints of ended trials stay; None: all. Raises StudyBusy when another driver took
    the lease over. Raises TrialsFailed when the machinery under the trials died, or a trial was halted.
    """
    if retention is not None:
        retention.begin(records, epoch=lease.epoch)
    todo = remaining(trials, records)
    if not todo:
        return StudyRun(records=(), unfinished=0)
    executor = start_executor()
    recorder = _Recorder(ledger=ledger, progress=progress, retention=retention)
    progress.start(trials, records, slots=executor.slots)
    try:
        while todo:
            jobs = _jobs(todo, files, epoch=lease.epoch)
            executor.submit([*jobs.values()])
            in_time = _run_round(jobs, executor, recorder, study=study, lease=lease, deadline=deadline)
            new = recorder.ended.values()
            if not in_time or more is None or not all(record.outcome.settled for record in new):
                break
            trials = more([*records, *new])
            todo = remaining(trials, [*records, *new])
            progress.more(trials)
    except BaseException:
        executor.kill()
        raise
    finally:
        progress.stop()
    executor.close()
    ended, train_seconds = recorder.ended, sum(recorder.train_seconds.values())
    unfinished = [trial for trial in remaining(trials, [*records, *ended.values()]) if trial.key not in ended]
    return StudyRun(records=tuple(ended.values()), unfinished=len(unfinished), train_seconds=train_seconds)


@dataclass(kw_only=True)
class _Recorder:
    """Passes each update on to the ledger, the retention and the progress; keeps the records of this call."""

    ledger: Ledger
    progress: Progress
    retention: Retention | None
    ended: dict[str, Record] = field(default_factory=dict)
    train_seconds: dict[str, float] = field(default_factory=dict)

    def take(self, update: TrialUpdate, trial: Trial) -> None:
        """Raises TrialsFailed when the update says that the trial was halted."""
        if update.key not in self.train_seconds:
            self.ledger.begin(trial)
        self.ledger.report(update.key, update.points)
        self.train_seconds[update.key] = update.train_seconds
        if update.record is not None:
            self.ended[update.key] = update.record
            self.ledger.settle(update.record)
            if self.retention is not None:
                self.retention.settle(update.record, running=self.train_seconds.keys() - self.ended.keys())
        self.progress.update(update)
        if update.halted is not None:
            raise TrialsFailed(update.halted)


def _jobs(trials: Sequence[Trial], files: StudyFolder, *, epoch: int) -> dict[str, TrialJob]:
    allowed = plugins.allowed()
    return {
        trial.key: TrialJob(trial=trial, folder=str(files.trial(trial.key)), epoch=epoch, plugins=allowed)
        for trial in trials
    }


def _run_round(
    jobs: Mapping[str, TrialJob],
    executor: Executor,
    recorder: _Recorder,
    *,
    study: Study,
    lease: Lease,
    deadline: float | None,
) -> bool:
    """Record updates until every job has ended. False: the deadline passed before that."""
    while not jobs.keys() <= recorder.ended.keys():
        if not lease.held():
            raise StudyBusy(f"another driver took study {study.label} over; this one stops and writes no more")
        if deadline is not None and time.monotonic() > deadline:
            return False
        for update in executor.updates(UPDATE_SECONDS):
            recorder.take(update, jobs[update.key].trial)
    return True
