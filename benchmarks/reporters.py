"""Many processes report to the driver's real loop, which writes to a real MLflow server: is anything lost, or late?"""

import json
import queue
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.faults.harness.server import serving
from benchmarks.reporter import points_of
from benchmarks.timing import Row, spread
from muxfer.config.study import LedgerConfig
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.files import StudyFolder
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.writer import Writer
from muxfer.study.loop import run_study
from muxfer.trial import Outcome, Point, Record, Study, Trial, content_hash

NUM_REPORTERS = 64
STEPS_A_REPORT = 10


def finished(trial: Trial, *, metric: float, epoch: int) -> Record:
    """A record as a worker would hand it back."""
    return Record(
        key=trial.key,
        setting=trial.setting,
        replicate=trial.replicate,
        outcome=Outcome.FINISHED,
        metric=metric,
        step=100,
        train_seconds=1.5,
        epoch=epoch,
        num_parameters=100_000,
    )


def writing(*, quick: bool) -> list[Row]:
    """Reports of one second each, from every process at once; all that was sent must be in the server's database."""
    reports, rounds = (5, 1) if quick else (20, 3)
    study = Study(name="load", key=content_hash("load"), identity={})
    trials = [
        Trial(key=content_hash(["load", n]), setting={"base_lr": 2.0**-7, "width": 64}, replicate=n, task={})
        for n in range(rounds * NUM_REPORTERS)
    ]
    with tempfile.TemporaryDirectory(prefix="muxfer-load-") as folder, serving(Path(folder, "server")) as proxy:
        uri = f"http://127.0.0.1:{proxy.port}"
        ledger = MlflowLedger(LedgerConfig(tracking_uri=uri), folder=Path(folder))
        lease = ledger.acquire(study)
        ledger.open(study, {}, lease)
        ledger.flush(60)
        reporters: list[Reporters] = []

        def start() -> Reporters:
            reporters.append(Reporters(NUM_REPORTERS, reports=reports, seconds=1.0))
            return reporters[0]

        assert ledger._writer is not None
        waits = Backlog(ledger._writer)
        began = time.perf_counter()
        ran = run_study(
            trials,
            [],
            study=study,
            ledger=ledger,
            lease=lease,
            start_executor=start,
            files=StudyFolder(Path(folder, study.label)),
            progress=Silence(),
        )
        seconds = time.perf_counter() - began
        left = waits.now()
        flushed = time.perf_counter()
        ledger.flush(600)
        flush_seconds = time.perf_counter() - flushed
        waits.stop()
        lease.release()
        ledger.close()
        assert len(ran.records) == len(trials)
        lost, num_points = compare(proxy.database, trials, reports=reports)
    note = f"{len(trials)} trials, {num_points:,} points in {seconds:.0f} s, {NUM_REPORTERS} processes"
    lag = reporters[0].lag
    return [
        Row(name="points lost, doubled or changed", value=spread([lost]), at_most=0, note=note),
        Row(
            name="points the driver and one server took per second",
            value=spread([num_points / (seconds + flush_seconds)]),
            note=f"offered: {num_points / seconds:,.0f} a second",
        ),
        Row(name="age of a report when the driver took it", value=spread(lag), unit=" s", at_most=1, note=note),
        Row(
            name="flush after the last report",
            value=spread([flush_seconds]),
            unit=" s",
            at_most=5,
            contestants={"bytes_waiting_then": spread([left]), "bytes_waiting_meanwhile": spread(waits.samples)},
        ),
    ]


class Reporters:
    """The Executor of so many processes of benchmarks.reporter. `lag` is how old each report was when it came in."""

    def __init__(self, num: int, *, reports: int, seconds: float) -> None:
        self.slots = num
        self.lag: list[float] = []
        self._job = {"reports": reports, "steps": STEPS_A_REPORT, "seconds": seconds}
        self._jobs: list[TrialJob] = []
        self._underway: dict[str, tuple[TrialJob, subprocess.Popen[str]]] = {}
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-S", "-m", "benchmarks.reporter"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(num)
        ]
        for process in self._processes:
            threading.Thread(target=self._listen, args=(process,), daemon=True).start()

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        self._jobs.extend(jobs)
        for process in self._processes:
            self._give(process)

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        came_in = []
        try:
            came_in.append(self._report(self._inbox.get(timeout=timeout_seconds)))
            while True:
                came_in.append(self._report(self._inbox.get_nowait()))
        except queue.Empty:
            return came_in

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _give(self, process: "subprocess.Popen[str]") -> None:
        if self._jobs:
            job = self._jobs.pop(0)
            self._underway[job.trial.key] = job, process
            assert process.stdin is not None
            process.stdin.write(json.dumps({"key": job.trial.key, **self._job}) + "\n")
            process.stdin.flush()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._inbox.put(json.loads(line))

    def _report(self, heard: dict[str, Any]) -> TrialUpdate:
        self.lag.append(time.monotonic() - heard["sent"])
        record = None
        if heard["last"]:
            job, process = self._underway.pop(heard["key"])
            record = finished(job.trial, metric=0.2, epoch=job.epoch)
            self._give(process)
        points = tuple(Point(name=name, step=step, value=value) for name, step, value in heard["points"])
        return TrialUpdate(key=heard["key"], step=heard["step"], points=points, train_seconds=1.0, record=record)


class Silence:
    """The Progress that says nothing."""

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None: ...
    def more(self, trials: Sequence[Trial]) -> None: ...
    def update(self, report: TrialUpdate) -> None: ...
    def stop(self) -> None: ...


class Backlog:
    """How much waits in the spool, looked at twice a second."""

    def __init__(self, writer: Writer) -> None:
        self.samples: list[float] = []
        self._writer = writer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def now(self) -> int:
        return self._writer.pending_bytes

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.5):
            self.samples.append(self.now())


def compare(database: Path, trials: Sequence[Trial], *, reports: int) -> tuple[int, int]:
    """How many points of the database differ from what was sent, and how many were sent."""
    wrong = 0
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for trial in trials:
            found = connection.execute(
                "select m.key, m.step, m.value from metrics m join tags t on t.run_uuid = m.run_uuid"
                " where t.key = 'muxfer.key' and t.value = ? and m.key in ('grad_norm', 'train_loss')",
                (trial.key,),
            ).fetchall()
            sent = points_of(trial.key, range(1, reports * STEPS_A_REPORT + 1))
            wrong += abs(len(found) - len(sent)) + len(set(found) ^ set(sent))
    return wrong, len(trials) * len(sent)
