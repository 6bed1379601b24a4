"""What every row of the fault bench stands on: the command run for real, hurt, typed again, and held to the promise.

The promise after any fault: one FINISHED record a trial key, none of its points missing or twice, each number and each
averaged weight bit for bit those of the sweep that nobody hurt, at most one checkpoint interval of work done again,
and no process, lock or temporary file left behind. It is read from the database and the disk, not through our own
readers.
"""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.database import TrialRow, runs_of
from benchmarks.faults.harness.settings import CHECKPOINT_EVERY, GRID, ROOT, SETTLE_SECONDS, STEPS
from muxfer.processes import start_time

MARK = "MUXFER_FAULTS_MARK"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended, and how long after it was asked to."""

    code: int
    out: str
    err: str

    def expect(self, *codes: int) -> "Ended":
        """One of these exit codes, no traceback, and nothing on stdout but for an answer."""
        assert self.code in codes, f"exit {self.code}, expected {codes}: {self.err[-2000:]}"
        assert "Traceback" not in self.err, self.err[-3000:]
        if self.code != 0:
            assert self.out == "", f"exit {self.code} with an answer: {self.out[:500]}"
        return self

    @property
    def answer(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


class Sweep:
    """One sweep in one folder: started, hurt, looked at, typed again."""

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = GRID,
        *,
        name: str = "lr-width",
        environment: Mapping[str, str] | None = None,
        database: Path | None = None,
    ) -> None:
        self.folder = folder
        self.name = name
        self.overrides = tuple(overrides)
        self.database = database or folder / "mlflow.db"
        self.mark = secrets.token_hex(8)
        self._environment = {"MLFLOW_TRACKING_URI": "", **(environment or {})}
        self._pids: list[int] = []
        self._checkpoints: dict[tuple[str, int], int] = {}

    def start(
        self, *arguments: str, command: str = "sweep", entry: Sequence[str] = ("muxfer",)
    ) -> "subprocess.Popen[str]":
        """`muxfer sweep NAME overrides --json` in a session of its own; files take its output, so it never blocks.

        `entry`: the module that is the command, and what it takes before the command's own arguments.
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
        self._pids.append(process.pid)
        process.out_err = out, err  # type: ignore[attr-defined]
        return process

    def end(self, process: "subprocess.Popen[str]", *, timeout: float = 600.0) -> Ended:
        """Wait for it; one that does not end in time fails the case."""
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"the command did not end within {timeout:g} s: {_text(process)[1][-2000:]}") from None
        finally:
            self.look()
        out, err = _text(process)
        return Ended(code=process.returncode, out=out, err=err)

    def run(self, *arguments: str, command: str = "sweep", timeout: float = 600.0) -> Ended:
        return self.end(self.start(*arguments, command=command), timeout=timeout)

    def finish(self) -> dict[str, Any]:
        """Type the same command again: it must end with 0."""
        return self.run().expect(0).answer

    def checkpoints(self) -> dict[tuple[str, int], int]:
        """The newest checkpoint's step of every (trial key, epoch), as it lies on the disk now."""
        found: dict[tuple[str, int], int] = {}
        for manifest in listed(self.folder, "muxfer/*/trials/*/attempt-*/step-*/manifest.json"):
            key, attempt = manifest.parents[2].name, manifest.parents[1].name
            place = key, int(attempt.split("-")[1])
            found[place] = max(found.get(place, 0), int(manifest.parent.name.removeprefix("step-")))
        return found

    def look(self) -> None:
        """Remember which checkpoints there are, and that no point that was recorded is further on than one allows."""
        runs = self.runs()  # first: whoever trains meanwhile is further on the disk
        for place, step in self.checkpoints().items():
            self._checkpoints[place] = max(step, self._checkpoints.get(place, 0))
        newest: dict[str, int] = {}
        for (key, _), step in self._checkpoints.items():
            newest[key] = max(newest.get(key, 0), step)
        for key, run in runs.items():
            ahead = max((step for _, step, _ in run.points), default=0) - newest.get(key, 0)
            assert ahead <= CHECKPOINT_EVERY, f"trial {key}: {ahead} steps were told of and lie in no checkpoint"

    def runs(self) -> dict[str, "TrialRow"]:
        """Every trial's one active run, by key. Two of them, or a point that is there twice, break the promise."""
        return runs_of(self.database)

    def newest_checkpoint(self, key: str, *, before: int) -> int:
        """The last step of this trial that `look` saw in a checkpoint of an epoch below `before`; 0 for none."""
        steps = (step for (one, epoch), step in self._checkpoints.items() if one == key and epoch < before)
        return max(steps, default=0)

    def weights(self) -> dict[str, str]:
        """SHA-256 of the averaged weights at every finished trial's last step."""
        found: dict[str, str] = {}
        for file in sorted(self.folder.glob(f"muxfer/*/trials/*/attempt-*/step-{STEPS:08d}/ema.safetensors")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert found.setdefault(file.parents[2].name, digest) == digest, f"{file} differs between two attempts"
        return found

    def processes(self) -> dict[int, str]:
        """Every living process that one of our commands started, or is."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if ours and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:100]
        return found

    def nobody_left(self, *, since: int | None = None) -> None:
        """`since`: look at those born since then alone, see `processes.start_time`.

        What a killed command left is the next one's to sweep, and that one may be hurt before it comes to it.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while (alive := self._born(since or 0)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not alive, f"processes were left behind: {alive}"

    def _born(self, since: int) -> dict[int, str]:
        return {pid: name for pid, name in self.processes().items() if (start_time(pid) or -1) >= since}

    def nothing_left(self, allowed: Sequence[str] = ()) -> None:
        self.nobody_left()
        names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")]
        bad = re.compile(r"(^|/)(\.[^/]*|[^/]*\.(tmp|lock|offset)|[^/]*\.db\.new[^/]*|spool-[^/]*)$")
        litter = [name for name in names if bad.search(name) and Path(name).name not in allowed]
        assert not litter, f"files were left behind: {litter}"
        for session in Path(tempfile.gettempdir()).glob("muxfer-*-*-*"):
            with suppress(ValueError):
                assert int(session.name.split("-")[1], 16) not in self._pids, f"{session} was left behind"


def listed(folder: Path, pattern: str) -> list[Path]:
    """What lies there, looked at again where somebody removed a folder meanwhile: glob raises then."""
    while True:
        with suppress(FileNotFoundError):
            return list(folder.glob(pattern))


def new_folder(folder: Path, number: int) -> Path:
    new = folder / f"{number:03d}"
    new.mkdir()
    return new


def _text(process: "subprocess.Popen[str]") -> tuple[str, str]:
    texts = []
    for file in process.out_err:  # type: ignore[attr-defined]
        file.seek(0)
        texts.append(file.read())
        file.close()
    return texts[0], texts[1]
