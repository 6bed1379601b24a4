"""One trial of the bench's grid, trained in this process."""

import hashlib
from contextlib import chdir
from pathlib import Path

from benchmarks.faults.harness.settings import GRID, STEPS
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.study.resolve import Request, resolve
from muxfer.study.trials import grid_trials
from muxfer.trial import Record


def make_request(folder: Path) -> Request:
    with chdir(folder):
        return resolve("lr-width", GRID)


def make_job(folder: Path) -> TrialJob:
    """The first trial of the grid, of width 16, on one thread."""
    import torch

    torch.set_num_threads(1)
    request = make_request(folder)
    trial = grid_trials(request.config, fingerprint=request.fingerprint)[0]
    return TrialJob(trial=trial, folder=str(folder / "trials" / trial.key), epoch=1)


def train_to(job: TrialJob, step: int) -> TrialRun:
    """Start the trial and train it up to this step."""
    run = TrialRun(job)
    while run.trainer.step < step:
        run.advance(0.0)
    return run


def finish_trial(run: TrialRun) -> Record:
    while True:
        if (record := run.advance(1.0).record) is not None:
            return record


def weights_digest(job: TrialJob) -> str:
    """SHA-256 of the averaged weights at the last step."""
    (file,) = Path(job.folder).glob(f"attempt-*/step-{STEPS:08d}/ema.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()
