"""One attempt at a job: whatever it raises ends that trial alone, in a record that says why."""

import importlib
from typing import Any

from muxfer.errors import MuxferError
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.trial import Outcome, Record

TRIAL_RUN = "muxfer.executors.worker:TrialRun"
"""The worker that trains: an importable `module:Class` made from a Job, advanced until a report carries a record."""


def failed_update(job: TrialJob, error: str, *, last: TrialUpdate | None = None) -> TrialUpdate:
    """The last report of a job that ended without a result; `last` is the newest one that came in before."""
    step, train_seconds = (last.step, last.train_seconds) if last else (0, 0.0)
    record = Record(
        key=job.trial.key,
        setting=job.trial.setting,
        replicate=job.trial.replicate,
        outcome=Outcome.FAILED,
        metric=None,
        step=step,
        train_seconds=train_seconds,
        epoch=job.epoch,
        kind=job.trial.kind,
        error=error,
    )
    return TrialUpdate(key=job.trial.key, step=step, train_seconds=train_seconds, record=record)


def error_line(error: BaseException) -> str:
    """One line of an exception: our own message, or the type, the message and where it was raised."""
    message = " ".join(str(error).split())
    if isinstance(error, MuxferError):
        return message
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})" if place is not None else ""
    return f"{type(error).__name__}: {message[:400]}{where}"


class Attempt:
    """One attempt at a job that always ends in a record: an exception becomes FAILED with its line.

    `sound` is False once an exception that is not a MuxferError came through: what it left behind in the process
    (half a CUDA context, a patched global) is anybody's guess.
    """

    def __init__(self, job: TrialJob, *, worker: str) -> None:
        self.job = job
        self.sound = True
        self._worker = worker
        self._run: Any = None
        self._last: TrialUpdate | None = None

    def advance(self, seconds: float) -> TrialUpdate:
        try:
            if self._run is None:
                module, _, name = self._worker.partition(":")
                self._run = getattr(importlib.import_module(module), name)(self.job)
            self._last = self._run.advance(seconds)
        except Exception as error:
            self.sound = isinstance(error, MuxferError)
            return failed_update(self.job, error_line(error), last=self._last)
        return self._last
