"""What every row of the fault bench stands on: the command run for real, hurt, typed again, and held to the promise.

The promise after any fault: one FINISHED record a trial key, none of its points missing or twice, each number and each
averaged weight bit for bit those of the sweep that nobody hurt, at most one checkpoint interval of work done again,
and no process, lock or temporary file left behind. It is read from the database and the disk, not through our own
readers.
"""

import fcntl
import hashlib
import json
import os
import random
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
from typing import Any

from muxfer.processes import locker, start_time, status

ROOT = Path(__file__).resolve().parents[2]
BRIEF = "MUXFER_FAULTS_BRIEF"
"""Set where the test suite asks: its sweeps are smaller, and where a row names a brief case it has that."""
CHECKPOINT_EVERY = 10
STEPS = 60
GRID = (
    f"search.width={'[16]' if BRIEF in os.environ else '[16,32]'}",
    "search.base_lr=[2**-8,2**-6,2**-1]",
    "model.base_width=32",
    "model.depth=1",
    "model.patch=4",
    f"training.steps={STEPS}",
    "training.batch_size=32",
    f"training.checkpoint_every={CHECKPOINT_EVERY}",
    "evaluation.timesteps=2",
)
"""Six small trials (three in the tests), of which some diverge: nothing else is smaller than life."""
ADAPTIVE = (
    *(override for override in GRID if not override.startswith("search.")),
    "search.width=[16]",
    "search.base_lr={uniform:[-9,-3],log2:true}",
    "search.sampler=tpe",
    "search.num_settings=6",
    "search.round_size=3",
)
"""A search that learns: its second round depends on what the first one found."""
IDENTITY: Mapping[str, Any] = {
    "model": {"family": "dit"},
    "data": {"name": "digits"},
    "objective": {"name": "ddpm"},
    **{group: {} for group in ("optimizer", "training", "evaluation")},
    "data_fingerprint": "0" * 16,
    "numerics": 1,
}
"""The least that a study's identity holds."""
CACHE = "MUXFER_FAULTS_CACHE"
"""Where the uninterrupted sweeps' results lie, so that one run of the bench makes each once."""
MARK = "MUXFER_FAULTS_MARK"
MOMENTS = 0.7
"""Up to which part of an uninterrupted sweep a command is hurt: the next ones, with less to do, come to their ends."""
SETTLE_SECONDS = 20.0
"""How long processes may take to follow a driver that was killed."""

Case = Callable[[int, Path, int], int]
"""`case(seed, empty folder, faults)`: cause so many faults, raise where the promise breaks; how many were caused."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault: what it is, what is right, how often the gate and the full bench cause it, and `batch` a case."""

    name: str
    fault: str
    right: str
    gate: int
    full: int
    case: Case
    batch: int = 1
    test: int = 1
    """How many faults the test suite's one case causes."""
    brief: Case | None = None
    """The test suite's case, where it is another one: rows that name the same one share it."""
    waits: bool = False
    """Whether a case mostly waits: then it goes beside the others."""


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

    def runs(self) -> dict[str, "Run"]:
        """Every trial's one active run, by key. Two of them, or a point that is there twice, break the promise."""
        return runs_of(self.database)

    def promise(self, answer: Mapping[str, Any], *, left: Sequence[str] = ()) -> None:
        """Hold what is there now to what the uninterrupted sweep left. `left`: names that may stay."""
        expected = reference(self.name, self.overrides)
        given = results(answer)
        assert given == expected["results"], f"other results than the uninterrupted sweep's: {given}"
        assert answer["best"] == expected["best"]
        runs = self.runs()
        assert runs.keys() == given.keys()
        for key, run in runs.items():
            assert run.status == "FINISHED", f"trial {key} stands as {run.status}"
            assert [list(point) for point in run.points] == expected["points"][key], f"trial {key}: other points"
            before = max(
                (s for (k, epoch), s in self._checkpoints.items() if k == key and epoch < run.epoch), default=0
            )
            done = run.record["step"] if run.record["outcome"] == "diverged" else STEPS
            assert run.record["resumed_at"] >= min(before, done), (
                f"trial {key} began again at {run.record['resumed_at']} with a checkpoint at {before}"
            )
        assert self.weights() == expected["weights"], "other weights than the uninterrupted sweep's"
        self.nothing_left(left)

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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trial's run as the database has it: points as (name, step, value), in order."""

    status: str
    points: tuple[tuple[str, int, float], ...]
    record: Mapping[str, Any]
    epoch: int


def stop_between_writes(pid: int, database: Path | None) -> None:
    """SIGSTOP; again, where it stands in a write to this SQLite file, which nobody could write to meanwhile."""
    files = [] if database is None else [database, database.with_name(database.name + "-shm")]
    while True:
        os.kill(pid, signal.SIGSTOP)
        while (found := status(pid)) is not None and found[0] not in "TZX":
            time.sleep(0.001)
        if locker(files) != pid:
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


def listed(folder: Path, pattern: str) -> list[Path]:
    """What lies there, looked at again where somebody removed a folder meanwhile: glob raises then."""
    while True:
        with suppress(FileNotFoundError):
            return list(folder.glob(pattern))


def new_folder(folder: Path, number: int) -> Path:
    new = folder / f"{number:03d}"
    new.mkdir()
    return new


def runs_of(database: Path) -> dict[str, Run]:
    if not database.exists():
        return {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            rows = connection.execute(
                "select r.run_uuid, r.status, t.value from runs r join tags t on t.run_uuid = r.run_uuid"
                " where t.key = 'muxfer.key' and r.lifecycle_stage = 'active'"
            ).fetchall()
        except sqlite3.OperationalError:  # not made yet
            return {}
        found: dict[str, Run] = {}
        for run_id, status, key in rows:
            assert key not in found, f"trial {key} has two runs"
            tags = dict(connection.execute("select key, value from tags where run_uuid = ?", (run_id,)))
            points = connection.execute(
                "select key, step, value from metrics where run_uuid = ? and key != 'train_seconds' order by key, step",
                (run_id,),
            ).fetchall()
            assert len({point[:2] for point in points}) == len(points), f"trial {key}: a point is there twice"
            epochs = [int(name[15:]) for name in tags if name.startswith("muxfer.record.e")]
            record = json.loads(tags[f"muxfer.record.e{max(epochs)}"]) if epochs else {}
            found[key] = Run(status=status, points=tuple(points), record=record, epoch=max(epochs, default=0))
        return found


def results(answer: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {trial["key"]: [trial["outcome"], trial["metric"], trial["step"]] for trial in answer["trials"]}


def reference(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What the sweep that nobody hurts ends with; made once where CACHE says, else once a process."""
    cache = Path(os.environ.setdefault(CACHE, tempfile.gettempdir() + f"/muxfer-faults-{os.getpid()}"))
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / (hashlib.sha256(json.dumps([name, *overrides]).encode()).hexdigest()[:16] + ".json")
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                sweep = Sweep(Path(folder), overrides, name=name)
                began = time.monotonic()
                answer = sweep.finish()
                wall_seconds = time.monotonic() - began
                points = {key: [list(point) for point in run.points] for key, run in sweep.runs().items()}
                found = {
                    "results": results(answer),
                    "best": answer["best"],
                    "points": points,
                    "weights": sweep.weights(),
                    "wall_seconds": wall_seconds,
                }
                sweep.nothing_left()
            place.write_text(json.dumps(found))
    return dict(json.loads(place.read_text()))


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 120.0) -> bool:
    """True when it holds; False when the process ends, or the time, before it does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return False


def random_moment(sweep: Sweep, process: "subprocess.Popen[str]", rng: random.Random) -> bool:
    """Wait for a moment: mostly any, else one where something is half written. Whether the process still runs then."""
    spots: Mapping[str, str] = {
        "a checkpoint is being written": "muxfer/*/trials/*/attempt-*/.step-*",
        "a spool has come into being": "muxfer/*/spool-*.jsonl",
        "the database is being made": "mlflow.db*",
        "the report is being written": "muxfer/*/*.svg",
    }
    seconds = rng.uniform(0.0, MOMENTS * reference(sweep.name, sweep.overrides)["wall_seconds"])
    if rng.random() < 0.4:
        pattern = rng.choice(list(spots.values()))
        wait_for(lambda: next(sweep.folder.glob(pattern), None) is not None, process, seconds=seconds)
        time.sleep(rng.uniform(0.0, 0.05))
    else:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    return process.poll() is None


def _text(process: "subprocess.Popen[str]") -> tuple[str, str]:
    texts = []
    for file in process.out_err:  # type: ignore[attr-defined]
        file.seek(0)
        texts.append(file.read())
        file.close()
    return texts[0], texts[1]
