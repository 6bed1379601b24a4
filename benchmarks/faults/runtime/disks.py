"""Full disks: under the checkpoints, the spool, the database, and the report.

Each disk is a tmpfs of 4 MB in a mount namespace of the case, so it goes away with the case's process. The database has
a larger one, because MLflow's tables alone need more than 4 MB. Only root can mount. Without root the gate fails with
a message, and the one fault of the test suite is a limit on the size of files.
"""

import ctypes
import hashlib
import json
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults.harness.promise import assert_promise, reference
from benchmarks.faults.harness.refusals import refusal
from benchmarks.faults.harness.settings import CHECKPOINT_EVERY, GRID
from benchmarks.faults.harness.sweep import Sweep, listed, new_folder, wait_for
from benchmarks.faults.runtime.checkpoints import finish_trial, make_job, make_request, train_to, weights_digest
from muxfer.executors.worker import TrialRun

MEGABYTES = 4
DATABASE_MEGABYTES = 16
NEW_MOUNT_NAMESPACE = 0x00020000
BUDGET = "checkpoints.budget_gb=0.1"
"""More than the disk has: it fills up after the sweep was planned."""
IMPATIENT = "ledger.patience_seconds=3"


def disk_full(seed: int, folder: Path, faults: int) -> int:
    """Two faults a sweep: a full disk for checkpoints, then for the spool; or for the database, then for the report."""
    rng = random.Random(seed)
    if not _own_mounts():
        assert faults == 1, "this row mounts a small tmpfs, which only root can do: run the bench as root"
        return _file_too_large(folder, rng)
    caused = 0
    while caused < faults:
        pair = (_checkpoint_then_spool, _database_then_report)[(seed + caused // 2) % 2]
        caused += pair(new_folder(folder), rng, min(2, faults - caused))
    return caused


class Disk:
    """A tmpfs that can be filled with ballast up to some free bytes, and freed of it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, free_bytes: int) -> None:
        with self._ballast.open("ab") as file:
            for _ in range(100):  # others write at the same time
                disk = os.statvfs(self.path)
                more = disk.f_bavail * disk.f_frsize - free_bytes
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
    """The size in bytes of the smallest checkpoint. A checkpoint may be removed meanwhile; then it looks again."""
    while True:
        with suppress(FileNotFoundError):
            found = listed(trials, "*/attempt-*/step-*/manifest.json")
            return min(sum(file.stat().st_size for file in path.parent.iterdir()) for path in found)


def _own_mounts() -> bool:
    """Give this process and its children a mount namespace of their own. False if that is not allowed."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNT_NAMESPACE) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def _checkpoint_then_spool(folder: Path, rng: random.Random, faults: int) -> int:
    sweep = Sweep(folder, GRID)
    trials = make_request(folder).files.path / "trials"
    with _disk(folder / "muxfer") as home, _disk(trials) as checkpoints:
        refused = sweep.run().expect(2)
        assert "is left alone" in refused.last_line, refused.last_line
        process = sweep.start(BUDGET)
        number = rng.randint(1, 2)
        assert wait_for(lambda: len(sweep.checkpoints()) >= number, process)
        smallest = _smallest_checkpoint(trials)
        checkpoints.fill(free_bytes=rng.randrange(smallest))
        ended = sweep.end(process)
        assert ended.code == 3, f"exit {ended.code}: {ended.err[-2000:]}"
        assert "Traceback" not in ended.err, ended.err[-2000:]
        lines = [line for line in ended.err.splitlines() if line.startswith("failed")]
        assert lines, ended.err[-2000:]
        assert all("can't be written (No space left on device)" in line for line in lines), lines
        _assert_whole(trials)
        checkpoints.free()
        if faults == 2:
            _run_on_full_disk(sweep, home, BUDGET, free_bytes=4096 * rng.randrange(4))
        result = sweep.run(BUDGET).expect(0).result
        assert faults == 1 or result["ran"] == 0
        assert_promise(sweep, result)
    return faults


def _database_then_report(folder: Path, rng: random.Random, faults: int) -> int:
    database = folder / "database" / "mlflow.db"
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    sweep = Sweep(folder, GRID, environment=uri, database=database)
    arguments = (BUDGET, IMPATIENT, f"output_dir={folder / 'muxfer'}")
    trials = make_request(folder).files.path / "trials"
    with _disk(folder / "muxfer") as home, _disk(trials), _disk(database.parent, DATABASE_MEGABYTES) as disk:
        if rng.random() < 0.5:
            disk.fill(free_bytes=rng.randrange(600_000))
            process = sweep.start(*arguments)
        else:
            process = sweep.start(*arguments)
            assert wait_for(lambda: any(run.points for run in sweep.runs().values()), process)
            disk.fill(free_bytes=0)
        ended = sweep.end(process).expect(4)
        assert "the disk is full" in ended.last_line, ended.last_line
        disk.free()
        if faults == 2:
            _run_on_full_disk(sweep, home, *arguments, free_bytes=rng.randrange(4096, 400_000))
        assert_promise(sweep, sweep.run(*arguments).expect(0).result)
    return faults


def _assert_whole(trials: Path) -> None:
    """Every checkpoint with a final name must match its manifest, and nothing else may lie beside them."""
    for path in trials.glob("*/attempt-*/*"):
        assert path.name.startswith("step-"), f"{path} was left behind"
        files = json.loads((path / "manifest.json").read_text())["files"]
        for name, entry in files.items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == entry["sha256"], f"{path / name} is cut"


def _run_on_full_disk(sweep: Sweep, disk: Disk, *arguments: str, free_bytes: int) -> None:
    """The sweep must be refused, but the ledger must hold every point and record, whatever else was not written."""
    disk.fill(free_bytes)
    ended = sweep.run(*arguments).expect(2)
    assert "can't be written (No space left on device)" in ended.last_line, ended.last_line
    expected, runs = reference(sweep.name, sweep.overrides)["points"], sweep.runs()
    assert {key: [list(point) for point in run.points] for key, run in runs.items()} == expected
    assert {run.status for run in runs.values()} == {"FINISHED"}
    disk.free()


def _file_too_large(folder: Path, rng: random.Random) -> int:
    """Without a disk to fill, the kernel refuses a write in the middle of a file. The trial resumes from before it."""
    job = make_job(folder)
    run = train_to(job, 3 * CHECKPOINT_EVERY)
    (newest,) = Path(job.folder).glob(f"attempt-*/step-{3 * CHECKPOINT_EVERY:08d}")
    largest = max(path.stat().st_size for path in newest.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(1000, largest), before[1]))
    try:
        error = refusal(lambda: finish_trial(run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "can't be written" in error, error or "the checkpoint was written although the kernel refused"
    _assert_whole(Path(job.folder).parent)
    again = TrialRun(job)
    assert again.resumed_at == 3 * CHECKPOINT_EVERY
    finish_trial(again)
    assert weights_digest(job) == reference("lr-width", GRID)["weights"][job.trial.key]
    return 1
