"""Trials without torch, for the tests of executors. A trial's setting says what it does.

Like the real trial run it saves its step in its folder, and a new attempt goes on from there.
"""

import os
import time
from pathlib import Path

from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.trial import Outcome, Point, Record, Trial

WORKER = "tests.executors.fake_trials:FakeRun"


def make_job(
    folder: Path, key: str, *, does: str = "finish", steps: int = 2, seconds: float = 0.0, deaths: int = 0
) -> TrialJob:
    """A job whose updates each take one step of `seconds`.

    `does` is finish, refuse, break, or die. A trial that dies does so in the first step of each of `deaths` attempts.
    """
    setting = {"does": does, "steps": steps, "seconds": seconds, "deaths": deaths}
    trial = Trial(key=key, setting=setting, replicate=3, task={"model": {"width": 64}, "lr": 2.0**-7})
    return TrialJob(trial=trial, folder=str(folder / key), epoch=7)


class FakeRun:
    """Takes the place of `muxfer.executors.worker.TrialRun`."""

    def __init__(self, job: TrialJob) -> None:
        self.job = job
        self.setting = job.trial.setting
        if self.setting["does"] == "refuse":
            raise BadInput("model.width 100 is not divisible by model.head_dim 64; use 128")
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint, self.attempts = folder / "step", folder / "attempts"
        self.step = self.resumed_at = int(self.checkpoint.read_text()) if self.checkpoint.exists() else 0
        with self.attempts.open("a") as file:
            file.write(f"{os.getpid()} {job.device}\n")

    def advance(self, seconds: float) -> TrialUpdate:
        time.sleep(float(self.setting["seconds"]))
        self.step += 1
        self.checkpoint.write_text(str(self.step))
        if self.setting["does"] == "break":
            raise ZeroDivisionError("division\nby zero")
        if self.setting["does"] == "die" and len(self.attempts.read_text().splitlines()) <= int(self.setting["deaths"]):
            os.kill(os.getpid(), 9)
        values = {"pid": os.getpid(), "threads": float(os.environ.get("OMP_NUM_THREADS", "0"))}
        return TrialUpdate(
            key=self.job.trial.key,
            step=self.step,
            points=tuple(Point(name=name, step=self.step, value=value) for name, value in values.items()),
            train_seconds=0.5 * self.step,
            record=self._record() if self.step >= int(self.setting["steps"]) else None,
        )

    def _record(self) -> Record:
        trial = self.job.trial
        return Record(
            key=trial.key,
            setting=trial.setting,
            replicate=trial.replicate,
            outcome=Outcome.FINISHED,
            metric=float(trial.task["lr"]),
            step=self.step,
            resumed_at=self.resumed_at,
            epoch=self.job.epoch,
        )
