"""The command run for real in a folder: started, interrupted, looked at, and typed again."""

import hashlib
import json
import os
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.faults.harness.settings import CHECKPOINT_EVERY, GRID, ROOT, SETTLE_SECONDS, STEPS
from muxfer.processes import locking_process, start_time, status

Process = subprocess.Popen[str]
MARK = "MUXFER_FAULTS_MARK"
"""An environment variable by which the processes of one Sweep are recognized."""
LITTER = re.compile(r"(^|/)(\.[^/]*|[^/]*\.(tmp|lock|offset)|[^/]*\.db\.new[^/]*|spool-[^/]*)$")


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a command ended: its exit code and its two outputs."""

    code: int
    out: str
    err: str

    def expect(self, *codes: int) -> "Exit":
        """Assert one of these exit codes, no traceback, and nothing on stdout unless the code is 0."""
        assert self.code in codes, f"exit {self.code}, expected {codes}: {self.err[-2000:]}"
        assert "Traceback" not in self.err, self.err[-3000:]
        if self.code != 0:
            assert self.out == "", f"exit {self.code} with a result on stdout: {self.out[:500]}"
        return self

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial's run in the database. `points` are (name, step, value), in order."""

    status: str
    points: tuple[tuple[str, int, float], ...]
    record: Mapping[str, Any]
    epoch: int


class Sweep:
    """One sweep in one folder, and all processes that its commands start."""

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = GRID,
        *,
        name: str = "lr-width",
        environment: Mapping[str, str] | None = None,
        database: Path | None = None,
        compared: bool = True,
    ) -> None:
        """`compared`: its recorded points are compared with the checkpoints after each command."""
        self.folder = folder
        self.name = name
        self.overrides = tuple(overrides)
        self.database = database or folder / "mlflow.db"
        self.compared = compared
        self.mark = secrets.token_hex(8)
        self._environment = {"MLFLOW_TRACKING_URI": "", **(environment or {})}
        self._outputs: dict[int, tuple[IO[str], IO[str]]] = {}
        self._checkpoints: dict[tuple[str, int], int] = {}

    def start(self, *arguments: str, command: str = "sweep", entry: Sequence[str] = ("muxfer",)) -> Process:
        """Start `muxfer sweep NAME overrides --json` in its own session. Files take its output, so it never blocks.

        `entry` is the module to run and what it takes before the command's own arguments.
        """
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", *entry, command, self.name, *self.overrides, "--json", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )
        self._outputs[process.pid] = out, err
        return process

    def end(self, process: Process, *, timeout: float = 600.0) -> Exit:
        """Wait for a command. One that does not end in time is killed and fails the case."""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            err = self._read_outputs(process.pid)[1]
            raise AssertionError(f"the command did not end within {timeout:g} s: {err[-2000:]}") from None
        finally:
            if self.compared:
                self.note_checkpoints()
        out, err = self._read_outputs(process.pid)
        return Exit(code=process.returncode, out=out, err=err)

    def _read_outputs(self, pid: int) -> tuple[str, str]:
        texts = []
        for file in self._outputs[pid]:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return texts[0], texts[1]

    def run(self, *arguments: str, command: str = "sweep", timeout: float = 600.0) -> Exit:
        return self.end(self.start(*arguments, command=command), timeout=timeout)

    def finish(self) -> dict[str, Any]:
        """Type the same command again. It must end with 0."""
        return self.run().expect(0).result

    def checkpoints(self) -> dict[tuple[str, int], int]:
        """The step of the newest checkpoint on the disk, by (trial key, epoch)."""
        steps: dict[tuple[str, int], int] = {}
        for manifest in listed(self.folder, "muxfer/*/trials/*/attempt-*/step-*/manifest.json"):
            key, attempt = manifest.parents[2].name, manifest.parents[1].name
            place = key, int(attempt.split("-")[1])
            steps[place] = max(steps.get(place, 0), int(manifest.parent.name.removeprefix("step-")))
        return steps

    def note_checkpoints(self) -> None:
        """Remember the checkpoints on the disk, and compare the recorded points with them.

        No recorded point may be more than one checkpoint interval ahead of the newest checkpoint.
        """
        runs = self.runs()  # read first: a trial that trains meanwhile is only further on the disk
        for place, step in self.checkpoints().items():
            self._checkpoints[place] = max(step, self._checkpoints.get(place, 0))
        newest: dict[str, int] = {}
        for (key, _), step in self._checkpoints.items():
            newest[key] = max(newest.get(key, 0), step)
        for key, run in runs.items():
            ahead = max((step for _, step, _ in run.points), default=0) - newest.get(key, 0)
            assert ahead <= CHECKPOINT_EVERY, f"trial {key}: {ahead} steps are recorded but in no checkpoint"

    def newest_checkpoint(self, key: str, *, before: int) -> int:
        """The last step of a trial in the noted checkpoints of epochs below `before`; 0 for none."""
        steps = (step for (one, epoch), step in self._checkpoints.items() if one == key and epoch < before)
        return max(steps, default=0)

    def runs(self) -> dict[str, TrialRow]:
        return runs_of(self.database)

    def weights(self) -> dict[str, str]:
        """SHA-256 of the averaged weights at the last step, by key of the finished trial."""
        digests: dict[str, str] = {}
        for file in sorted(self.folder.glob(f"muxfer/*/trials/*/attempt-*/step-{STEPS:08d}/ema.safetensors")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert digests.setdefault(file.parents[2].name, digest) == digest, f"{file} differs between two attempts"
        return digests

    def processes(self) -> dict[int, str]:
        """Command lines of all living processes that our commands are or started, by pid."""
        commands = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if ours and start_time(int(folder.name)) is not None:
                    commands[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:100]
        return commands

    def assert_no_processes(self, *, since: int = 0) -> None:
        """Wait for processes to end; fail if some stay. `since` ignores older ones, see `processes.start_time`.

        The next command ends what a killed command left behind, but it may be killed itself before that.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while alive := {pid: name for pid, name in self.processes().items() if (start_time(pid) or -1) >= since}:
            assert time.monotonic() < deadline, f"processes were left behind: {alive}"
            time.sleep(0.2)

    def assert_clean(self) -> None:
        """Fail if a process, a lock, a temporary file or a session's folder was left behind."""
        self.assert_no_processes()
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        litter = [name for name in names if LITTER.search(name)]
        assert not litter, f"files were left behind: {litter}"
        for session in Path(tempfile.gettempdir()).glob("muxfer-*-*-*"):
            with suppress(ValueError):
                assert int(session.name.split("-")[1], 16) not in self._outputs, f"{session} was left behind"


def query(database: Path, text: str, *values: object) -> list[Any]:
    """The rows of a query of a SQLite database, without muxfer's own readers."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        return connection.execute(text, values).fetchall()


def _query_if_made(database: Path, text: str) -> list[Any]:
    """The rows of a query; none if the database or its tables do not exist yet."""
    with suppress(sqlite3.OperationalError):
        return query(database, text) if database.exists() else []
    return []


def runs_of(database: Path) -> dict[str, TrialRow]:
    """The one active run of every trial, by trial key.

    Two active runs of a trial, or a point that is there twice, break the promise.
    """
    rows = _query_if_made(
        database,
        "select r.run_uuid, r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid"
        " where t.key = 'muxfer.key' and r.lifecycle_stage = 'active'",
    )
    runs: dict[str, TrialRow] = {}
    for run_id, run_status, key in rows:
        assert key not in runs, f"trial {key} has two runs"
        tags = dict(query(database, "select key, value from tags where run_uuid = ?", run_id))
        text = "select key, step, value from metrics where run_uuid = ? and key != 'train_seconds' order by key, step"
        points = query(database, text, run_id)
        assert len({point[:2] for point in points}) == len(points), f"trial {key}: a point is there twice"
        epochs = [int(name[15:]) for name in tags if name.startswith("muxfer.record.e")]
        record = json.loads(tags[f"muxfer.record.e{max(epochs)}"]) if epochs else {}
        runs[key] = TrialRow(status=run_status, points=tuple(points), record=record, epoch=max(epochs, default=0))
    return runs


def holders_of(database: Path) -> list[int]:
    """The pids of all drivers that held a lease in this database, by epoch. Drivers that lost a race are left out."""
    pids = {}
    lost = {key for (key,) in _query_if_made(database, "select key from tags where value = 'lost the race'")}
    for key, value in _query_if_made(database, "select key, value from params where key like 'lease.e%'"):
        holder, epoch = json.loads(value), key.removeprefix("lease.")
        if f"lease.released.{epoch}.{holder['token']}" not in lost:
            pids[int(epoch[1:])] = int(holder["pid"])
    return [pids[epoch] for epoch in sorted(pids)]


def listed(folder: Path, pattern: str) -> list[Path]:
    """Matching paths. `glob` raises when a folder is removed meanwhile; then it is called again."""
    while True:
        with suppress(FileNotFoundError):
            return list(folder.glob(pattern))


def new_folder(folder: Path, prefix: str = "") -> Path:
    new = folder / f"{prefix}{len(os.listdir(folder)):03d}"
    new.mkdir()
    return new


def wait_for(condition: Callable[[], object], process: Process, *, seconds: float = 120.0) -> bool:
    """Whether the condition held before the process ended and before the time was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return False


def stop_between_writes(pid: int, database: Path | None) -> None:
    """SIGSTOP a process, but not inside a write to this SQLite file: the file would stay locked for all others."""
    files = [] if database is None else [database, database.with_name(database.name + "-shm")]
    while True:
        os.kill(pid, signal.SIGSTOP)
        while (state := status(pid)) is not None and state[0] not in "TZX":
            time.sleep(0.001)
        if locking_process(files) != pid:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
