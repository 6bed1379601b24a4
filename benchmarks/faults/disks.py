"""Disks that are full, and checkpoints that are not what was written.

The disks are tmpfs of 4 MB, mounted in a mount namespace of the case's own, so they go with its process; the database
has a larger one, for MLflow's alone outgrows that. Only root can mount: elsewhere the gate fails and says so, and the
test suite's single fault is a limit on the size of files.
"""

import ctypes
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path

from benchmarks.faults.bench import (
    CHECKPOINT_EVERY,
    GRID,
    SETTLE_SECONDS,
    STEPS,
    Sweep,
    listed,
    new_folder,
    reference,
    wait_for,
)
from benchmarks.faults.losses import refusal
from muxfer.executors.base import Job
from muxfer.executors.worker import TrialRun
from muxfer.study.resolve import Request, resolve
from muxfer.trial import Record

MEGABYTES = 4
DATABASE_MEGABYTES = 16
NEW_MOUNT_NAMESPACE = 0x00020000
BUDGET = "checkpoints.budget_gb=0.1"
"""More than the disk has: what others filled it with came after the sweep was planned."""
IMPATIENT = "ledger.patience_seconds=3"


def disk_full(seed: int, folder: Path, faults: int) -> int:
    """Pairs of faults on one sweep: the checkpoints' disk, then the spool's; the database's, then the report's."""
    rng = random.Random(seed)
    if not _own_mounts():
        assert faults == 1, "a full disk is a tmpfs here, which only root can mount: run the bench as root"
        return _file_too_large(folder, rng)
    caused = 0
    while caused < faults:
        pair = (_checkpoint_then_spool, _database_then_report)[(seed + caused // 2) % 2]
        caused += pair(new_folder(folder, caused), rng, min(2, faults - caused))
    return caused


class Disk:
    """A tmpfs that can be filled but for some bytes, and emptied of the ballast again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leave: int) -> None:
        with self._ballast.open("ab") as file:
            for _ in range(100):  # others write at the same time
                room = os.statvfs(self.path)
                more = room.f_bavail * room.f_frsize - leave
                if more <= 0:
                    return
                try:
                    os.posix_fallocate(file.fileno(), self._ballast.stat().st_size, more)
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def _disk(path: Path, megabytes: int = MEGABYTES) -> Iterator[Disk]:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _smallest_checkpoint(trials: Path) -> int:
    """In bytes; looked at again where one was removed meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            return min(_bytes(path.parent) for path in listed(trials, "*/attempt-*/step-*/manifest.json"))


def _own_mounts() -> bool:
    """A mount namespace for this process and its children; False where that is not allowed."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNT_NAMESPACE) != 0:
        return False
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    return done.returncode == 0


def _checkpoint_then_spool(folder: Path, rng: random.Random, faults: int) -> int:
    sweep = Sweep(folder, GRID)
    trials = _asked(folder).home / "trials"
    with _disk(folder / "muxfer") as home, _disk(trials) as checkpoints:
        refused = sweep.run().expect(2)
        assert "is left alone" in refused.last_line, refused.last_line
        process = sweep.start(BUDGET)
        number = rng.randint(1, 2)
        assert wait_for(lambda: len(sweep.checkpoints()) >= number, process)
        smallest = _smallest_checkpoint(trials)
        checkpoints.fill(leave=rng.randrange(smallest))
        ended = sweep.end(process)
        assert ended.code == 3, f"exit {ended.code}: {ended.err[-2000:]}"
        assert "Traceback" not in ended.err, ended.err[-2000:]
        lines = [line for line in ended.err.splitlines() if line.startswith("failed")]
        assert lines, ended.err[-2000:]
        assert all("can't be written (No space left on device)" in line for line in lines), lines
        _whole(trials)
        checkpoints.free()
        if faults == 2:
            home.fill(leave=4096 * rng.randrange(4))
            ended = sweep.run(BUDGET).expect(2)
            assert "can't be written (No space left on device)" in ended.last_line, ended.last_line
            _recorded(sweep)
            home.free()
        answer = sweep.run(BUDGET).expect(0).answer
        assert faults == 1 or answer["ran"] == 0
        sweep.promise(answer)
    return faults


def _database_then_report(folder: Path, rng: random.Random, faults: int) -> int:
    database = folder / "database" / "mlflow.db"
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    sweep = Sweep(folder, GRID, environment=uri, database=database)
    arguments = (BUDGET, IMPATIENT, f"output_dir={folder / 'muxfer'}")
    trials = _asked(folder).home / "trials"
    with _disk(folder / "muxfer") as home, _disk(trials), _disk(database.parent, DATABASE_MEGABYTES) as disk:
        if rng.random() < 0.5:
            disk.fill(leave=rng.randrange(600_000))
            process = sweep.start(*arguments)
        else:
            process = sweep.start(*arguments)
            assert wait_for(lambda: any(run.points for run in sweep.runs().values()), process)
            disk.fill(leave=0)
        ended = sweep.end(process).expect(4)
        assert "the disk is full" in ended.last_line, ended.last_line
        disk.free()
        if faults == 2:
            home.fill(leave=rng.randrange(4096, 400_000))
            ended = sweep.run(*arguments).expect(2)
            assert "can't be written (No space left on device)" in ended.last_line, ended.last_line
            _recorded(sweep)
            home.free()
        sweep.promise(sweep.run(*arguments).expect(0).answer)
    return faults


def _bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def _whole(trials: Path) -> None:
    """Every checkpoint that has its final name is what its manifest says, and nothing else lies about."""
    for path in trials.glob("*/attempt-*/*"):
        assert path.name.startswith("step-"), f"{path} was left behind"
        files = json.loads((path / "manifest.json").read_text())["files"]
        for name, told in files.items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == told["sha256"], f"{path / name} is cut"


def _recorded(sweep: Sweep) -> None:
    """The ledger has all of it, whatever else could not be written."""
    expected = reference(sweep.name, sweep.overrides)["points"]
    runs = sweep.runs()
    assert {key: [list(point) for point in run.points] for key, run in runs.items()} == expected
    assert {run.status for run in runs.values()} == {"FINISHED"}


def _file_too_large(folder: Path, rng: random.Random) -> int:
    """A refusal by the kernel in the middle of a file, for lack of a disk to fill: the trial goes on from before it."""
    job = _job(folder)
    run = TrialRun(job)
    while run.trainer.step < 3 * CHECKPOINT_EVERY:
        run.advance(0.0)
    (newest,) = Path(job.folder).glob(f"attempt-*/step-{3 * CHECKPOINT_EVERY:08d}")
    largest = max(path.stat().st_size for path in newest.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1000, largest), before[1]))
    try:
        told = refusal(lambda: _finish(run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "can't be written" in told, told or "the checkpoint was written although the kernel refused"
    _whole(Path(job.folder).parent)
    again = TrialRun(job)
    assert again.resumed_at == 3 * CHECKPOINT_EVERY
    _finish(again)
    assert _weights(job) == reference("lr-width", GRID)["weights"][job.trial.key]
    return 1


def _asked(folder: Path) -> Request:
    with chdir(folder):
        return resolve("lr-width", GRID)


def _job(folder: Path) -> Job:
    """The first trial of the bench's grid, of width 16, in this process."""
    import torch

    from muxfer.study.trials import grid_trials

    torch.set_num_threads(1)
    request = _asked(folder)
    trial = grid_trials(request.config, fingerprint=request.fingerprint)[0]
    return Job(trial=trial, folder=str(folder / "trials" / trial.key), epoch=1)


def _finish(run: TrialRun) -> Record:
    while True:
        if (record := run.advance(1.0).record) is not None:
            return record


def _weights(job: Job) -> str:
    (file,) = Path(job.folder).glob(f"attempt-*/step-{STEPS:08d}/ema.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


CUTS, FLIPS = 50, 200
RESUMED = 4
"""So many of the damaged trials are trained to the end: 0.5 s each."""


def checkpoint_damaged(seed: int, folder: Path, faults: int) -> int:
    """A trial's newest checkpoint cut, flipped, empty, missing, another trial's: the one before is used, bit for bit.

    All kinds are 253 faults; fewer are drawn from them. With all of them the first is caused below a killed sweep.
    """
    from muxfer.training import checkpoint

    rng = random.Random(seed)
    logging.getLogger("muxfer.training.checkpoint").setLevel(logging.ERROR)
    job = _job(folder)
    run = TrialRun(job)
    while run.trainer.step < 3 * CHECKPOINT_EVERY:
        run.advance(0.0)
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
        found = checkpoint.load_newest(job.folder, key=job.trial.key)
        assert found is not None, f"{name}: nothing was found"
        assert found.snapshot.step == 2 * CHECKPOINT_EVERY, f"{name}: step {found.snapshot.step} was taken"
        if number < RESUMED:
            again = TrialRun(job)
            record = _finish(again)
            assert record.resumed_at == 2 * CHECKPOINT_EVERY, f"{name}: went on at {record.resumed_at}"
            assert _weights(job) == expected, f"{name}: other weights than the uninterrupted trial's"
    if faults == len(damages):
        _below_a_sweep(new_folder(folder, 0), rng)
    return faults


Damage = Callable[[Path], None]


def _damages(checkpoint: Path, rng: random.Random) -> list[tuple[str, Damage]]:
    """Each kind with its name: cuts at places evenly spread over all bytes of all files, bits anywhere."""
    sizes = {path.name: path.stat().st_size for path in sorted(checkpoint.iterdir())}
    total = sum(sizes.values())
    cuts = [_place(sizes, (number * total + rng.randrange(total)) // CUTS) for number in range(CUTS)]
    flips = rng.sample(range(8 * total), FLIPS)
    found: list[tuple[str, Damage]] = [(f"{name} cut at {place}", _cut(name, place)) for name, place in cuts]
    for bit in flips:
        name, place = _place(sizes, bit // 8)
        found.append((f"bit {bit % 8} of byte {place} of {name} flipped", _flip(name, place, bit % 8)))
    return [*found, ("empty", _emptied), ("missing", _removed), ("another trial's", _renamed)]


def _place(sizes: Mapping[str, int], byte: int) -> tuple[str, int]:
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


def _renamed(checkpoint: Path) -> None:
    """As another trial would have left it: whole, with a manifest that fits, of another key."""
    state = checkpoint / "state.json"
    content = json.dumps({**json.loads(state.read_text()), "key": "0" * 16}).encode()
    state.write_bytes(content)
    manifest = checkpoint / "manifest.json"
    files = json.loads(manifest.read_text())["files"]
    files["state.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest.write_text(json.dumps({"files": files}))


def _below_a_sweep(folder: Path, rng: random.Random) -> None:
    """The same through the command: a driver dies, the newest checkpoints are damaged, the next command converges."""
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
    again.promise(again.finish())
