"""Checkpoints that are not what was written: cut, with flipped bits, empty, missing, or of another trial."""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path

import torch

from benchmarks.faults.harness.promise import assert_promise, reference
from benchmarks.faults.harness.settings import CHECKPOINT_EVERY, GRID, SETTLE_SECONDS, STEPS
from benchmarks.faults.harness.sweep import Sweep, new_folder, wait_for
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.study.resolve import Request, resolve
from muxfer.study.trials import grid_trials
from muxfer.training import checkpoint
from muxfer.trial import Record

CUTS, FLIPS = 50, 200
RESUMED = 4
"""How many of the damaged trials are trained to the end, which takes 0.5 s each."""
Damage = Callable[[Path], None]


def checkpoint_damaged(seed: int, folder: Path, faults: int) -> int:
    """Damage a trial's newest checkpoint. The one before it must be used, and the final weights must be bit-equal.

    There are 253 damages; fewer faults are a random choice of them. With all 253, a killed sweep's checkpoints are
    damaged as well.
    """
    rng = random.Random(seed)
    logging.getLogger("muxfer.training.checkpoint").setLevel(logging.ERROR)
    job = make_job(folder)
    train_to(job, 3 * CHECKPOINT_EVERY)
    expected = reference("lr-width", GRID)["weights"][job.trial.key]
    pristine = folder / "pristine"
    shutil.copytree(job.folder, pristine)
    (newest,) = pristine.glob(f"attempt-*/step-{3 * CHECKPOINT_EVERY:08d}")
    damages = _damages(newest, rng)
    assert len(damages) == CUTS + FLIPS + 3
    rng.shuffle(damages)
    before = checkpoint.load_newest(job.folder, key=job.trial.key)
    assert before is not None
    assert before.snapshot.step == 3 * CHECKPOINT_EVERY
    for number, (name, damage) in enumerate(damages[:faults]):
        shutil.rmtree(job.folder)
        shutil.copytree(pristine, job.folder)
        (target,) = Path(job.folder).glob(f"attempt-*/step-{3 * CHECKPOINT_EVERY:08d}")
        damage(target)
        loaded = checkpoint.load_newest(job.folder, key=job.trial.key)
        assert loaded is not None, f"{name}: no checkpoint was loaded"
        assert loaded.snapshot.step == 2 * CHECKPOINT_EVERY, f"{name}: step {loaded.snapshot.step} was loaded"
        if number < RESUMED:
            record = finish_trial(TrialRun(job))
            assert record.resumed_at == 2 * CHECKPOINT_EVERY, f"{name}: resumed at {record.resumed_at}"
            assert weights_digest(job) == expected, f"{name}: weights differ from the uninterrupted trial's"
    if faults == len(damages):
        _damage_below_a_sweep(new_folder(folder), rng)
    return faults


def _damages(checkpoint: Path, rng: random.Random) -> list[tuple[str, Damage]]:
    """Every damage with its name. Cuts are spread evenly over all bytes of all files; flipped bits are random."""
    sizes = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir())}
    total = sum(sizes.values())
    cuts = [_file_and_offset(sizes, (number * total + rng.randrange(total)) // CUTS) for number in range(CUTS)]
    flips = rng.sample(range(8 * total), FLIPS)
    damages: list[tuple[str, Damage]] = [(f"{name} cut at {place}", _cut(name, place)) for name, place in cuts]
    for bit in flips:
        name, place = _file_and_offset(sizes, bit // 8)
        damages.append((f"bit {bit % 8} of byte {place} of {name} flipped", _flip(name, place, bit % 8)))
    return [*damages, ("empty", _emptied), ("missing", _removed), ("another trial's", _relabelled)]


def _file_and_offset(sizes: Mapping[str, int], byte: int) -> tuple[str, int]:
    """The file that holds this byte of all files together, and its offset there."""
    for name, size in sizes.items():
        if byte < size:
            return name, byte
        byte -= size
    raise AssertionError


def _cut(name: str, place: int) -> Damage:
    return lambda checkpoint: os.truncate(checkpoint / name, place)


def _flip(name: str, place: int, bit: int) -> Damage:
    def flip(checkpoint: Path) -> None:
        with (checkpoint / name).open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << bit]))

    return flip


def _emptied(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


def _removed(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


def _relabelled(checkpoint: Path) -> None:
    """Make it another trial's: whole, with a manifest that matches, but with another key."""
    state = checkpoint / "state.json"
    content = json.dumps({**json.loads(state.read_text()), "key": "0" * 16}).encode()
    state.write_bytes(content)
    manifest = checkpoint / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    files["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest.write_text(json.dumps({"files": files}))


def _damage_below_a_sweep(folder: Path, rng: random.Random) -> None:
    """The same through the command: a driver is killed, its newest checkpoints are damaged, the next one converges."""
    killed = Sweep(folder)
    process = killed.start()
    assert wait_for(lambda: any(step >= 2 * CHECKPOINT_EVERY for step in killed.checkpoints().values()), process)
    process.kill()
    killed.end(process).expect(-signal.SIGKILL)
    deadline = time.monotonic() + SETTLE_SECONDS
    while killed.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    damaged: Sequence[tuple[str, int]] = [place for place, step in killed.checkpoints().items() if step < STEPS]
    for key, epoch in damaged:
        newest = max(folder.glob(f"muxfer/*/trials/{key}/attempt-{epoch:04d}-*/step-*"), key=lambda path: path.name)
        rng.choice(_damages(newest, rng))[1](newest)
    again = Sweep(folder)
    assert_promise(again, again.finish())


def make_request(folder: Path) -> Request:
    with chdir(folder):
        return resolve("lr-width", GRID)


def make_job(folder: Path) -> TrialJob:
    """The first trial of the grid, of width 16, on one thread."""
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
