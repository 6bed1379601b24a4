"""Run jobs in this very process, one after another, with nothing in between: for tests and for a debugger.

Also what every executor does with a job wherever it runs (`Attempt`): the worker is named by an importable path, and
whatever it raises ends this trial alone, in a record that says why.
"""

import importlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from muxfer.errors import MuxferError
from muxfer.trial import Outcome, Record
from muxfer.worker import Job, Report

TRIAL_RUN = "muxfer.worker:TrialRun"
"""The worker that trains: an importable `module:Class` made from a Job, advanced until a report carries a record."""


def failed(job: Job, error: str, *, last: Report | None = None) -> Report:
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
    return Report(key=job.trial.key, step=step, train_seconds=train_seconds, record=record)


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

    def __init__(self, job: Job, *, worker: str) -> None:
        self.job = job
        self.sound = True
        self._worker = worker
        self._run: Any = None
        self._last: Report | None = None

    def advance(self, seconds: float) -> Report:
        try:
            if self._run is None:
                module, _, name = self._worker.partition(":")
                self._run = getattr(importlib.import_module(module), name)(self.job)
            self._last = self._run.advance(seconds)
        except Exception as error:
            self.sound = isinstance(error, MuxferError)
            return failed(self.job, error_line(error), last=self._last)
        return self._last


class InlineExecutor:
    """The Executor that needs nothing: `reports` itself trains, for about as long as it may wait."""

    slots = 1

    def __init__(self, *, device: str = "cpu", worker: str = TRIAL_RUN) -> None:
        self.device = device
        self._worker = worker
        self._queue: deque[Job] = deque()
        self._attempt: Attempt | None = None

    def submit(self, jobs: Sequence[Job]) -> None:
        self._queue.extend(replace(job, device=self.device) for job in jobs)

    def reports(self, timeout_seconds: float) -> list[Report]:
        came_in: list[Report] = []
        end = time.monotonic() + timeout_seconds
        while self._attempt is not None or self._queue:
            if self._attempt is None:
                self._attempt = Attempt(self._queue.popleft(), worker=self._worker)
            report = self._attempt.advance(timeout_seconds)
            came_in.append(report)
            if report.last:
                self._attempt = None
            if time.monotonic() >= end:
                break
        return came_in

    def close(self) -> None:
        self._queue.clear()
        self._attempt = None

    def kill(self) -> None:
        self.close()
