"""Many processes report to the driver's real loop, which writes to a real MLflow server. Nothing may get lost."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT
from benchmarks.faults.harness.server import serving
from benchmarks.faults.harness.sweep import query
from benchmarks.reporter import CURVES, points_of
from benchmarks.timing import Row, Spread, spread
from muxfer.executors.base import TrialJob, TrialUpdate
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.writer import Writer
from muxfer.study.loop import run_study
from muxfer.study.resolve import resolve
from muxfer.study.session import Session, drive
from muxfer.trial import Outcome, Point, Record, Trial, content_hash

NUM_REPORTERS = 64
STEPS_A_REPORT = 10


def finished(trial: Trial, *, metric: float, epoch: int) -> Record:
    """A finished trial's record, as a worker makes it."""
    job = TrialJob(trial=trial, folder="", epoch=epoch)
    return job.record(Outcome.FINISHED, metric=metric, step=100, train_seconds=1.5, num_parameters=100_000)


def writing(*, quick: bool) -> list[Row]:
    """64 processes report once a second. Everything they sent must be in the server's database."""
    reports, rounds = (5, 1) if quick else (20, 3)
    trials = [
        Trial(key=content_hash(["load", n]), setting={"base_lr": 2.0**-7, "width": 64}, replicate=n, task={})
        for n in range(rounds * NUM_REPORTERS)
    ]
    num_points = len(trials) * reports * STEPS_A_REPORT * len(CURVES)
    with tempfile.TemporaryDirectory(prefix="muxfer-load-") as folder, serving(Path(folder)) as proxy:
        uri = f"http://127.0.0.1:{proxy.port}"
        request = resolve("lr-width", [f"ledger.tracking_uri={uri}", f"output_dir={folder}"])
        with drive(request) as session:
            session.flush()
            seconds, flush_seconds, ages, waiting = _train(session, trials, reports=reports)
        num_wrong = compare(proxy.database, trials, reports=reports)
    note = f"{len(trials)} trials, {num_points:,} points in {seconds:.0f} s, {NUM_REPORTERS} processes"
    rate, offered = num_points / (seconds + flush_seconds), num_points / seconds
    taken, flush = "points the driver and one server took per second", spread([flush_seconds])
    return [
        Row(name="points lost, doubled or changed", value=spread([num_wrong]), at_most=0, note=note),
        Row(name=taken, value=spread([rate]), note=f"offered: {offered:,.0f} a second"),
        Row(name="age of a report when the driver took it", value=spread(ages), unit=" s", at_most=1, note=note),
        Row(name="flush after the last report", value=flush, unit=" s", at_most=5, contestants=waiting),
    ]


def _train(
    session: Session, trials: Sequence[Trial], *, reports: int
) -> tuple[float, float, list[float], dict[str, Spread]]:
    """The driver's real loop. It is not `Session.run`, because that includes the flush, which is timed here.

    Returns the seconds of the loop and of the flush, the ages of the reports, and how many bytes waited in the spool:
    after the last report, and twice a second.
    """
    ledger = session.ledger
    assert isinstance(ledger, MlflowLedger)
    assert ledger._writer is not None
    samples: list[float] = []
    over = threading.Event()

    def sample(writer: Writer) -> None:
        while not over.wait(0.5):
            samples.append(writer.pending_bytes)

    sampler = threading.Thread(target=sample, args=(ledger._writer,), daemon=True)
    sampler.start()
    began = time.perf_counter()
    reporters = Reporters(NUM_REPORTERS, reports=reports, seconds=1.0)
    ran = run_study(
        trials,
        [],
        study=session.study,
        ledger=ledger,
        lease=session.lease,
        start_executor=lambda: reporters,
        files=session.files,
        progress=Silence(),
    )
    ended, pending_bytes = time.perf_counter(), ledger._writer.pending_bytes
    ledger.flush(600)
    flush_seconds = time.perf_counter() - ended
    over.set()
    sampler.join()
    assert len(ran.records) == len(trials)
    waiting = {"bytes_waiting_then": spread([pending_bytes]), "bytes_waiting_meanwhile": spread(samples)}
    return ended - began, flush_seconds, reporters.ages, waiting


class Reporters:
    """An Executor with `num` processes of benchmarks.reporter. `ages` are the ages of the reports when they arrived."""

    def __init__(self, num: int, *, reports: int, seconds: float) -> None:
        self.slots = num
        self.ages: list[float] = []
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
            self._start_next(process)

    def updates(self, timeout_seconds: float) -> list[TrialUpdate]:
        updates = []
        try:
            updates.append(self._update(self._inbox.get(timeout=timeout_seconds)))
            while True:
                updates.append(self._update(self._inbox.get_nowait()))
        except queue.Empty:
            return updates

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _start_next(self, process: "subprocess.Popen[str]") -> None:
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

    def _update(self, report: dict[str, Any]) -> TrialUpdate:
        self.ages.append(time.monotonic() - report["sent"])
        record = None
        if report["last"]:
            job, process = self._underway.pop(report["key"])
            record = finished(job.trial, metric=0.2, epoch=job.epoch)
            self._start_next(process)
        points = tuple(Point(name=name, step=step, value=value) for name, step, value in report["points"])
        return TrialUpdate(key=report["key"], step=report["step"], points=points, train_seconds=1.0, record=record)


class Silence:
    """A Progress that prints nothing."""

    def start(self, trials: Sequence[Trial], records: Sequence[Record], *, slots: int) -> None: ...
    def more(self, trials: Sequence[Trial]) -> None: ...
    def update(self, report: TrialUpdate) -> None: ...
    def stop(self) -> None: ...


def compare(database: Path, trials: Sequence[Trial], *, reports: int) -> int:
    """How many points in the database differ from those sent."""
    num_wrong = 0
    text = (
        "select m.key, m.step, m.value from metrics m join tags t on t.run_uuid = m.run_uuid"
        " where t.key = 'muxfer.key' and t.value = ? and m.key in ('grad_norm', 'train_loss')"
    )
    for trial in trials:
        stored = query(database, text, trial.key)
        sent = points_of(trial.key, range(1, reports * STEPS_A_REPORT + 1))
        num_wrong += abs(len(stored) - len(sent)) + len(set(stored) ^ set(sent))
    return num_wrong
