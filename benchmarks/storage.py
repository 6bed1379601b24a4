"""How fast a trial starts, cold and from its checkpoint, and how fast the ledger takes metrics."""

import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.steps import proxy
from benchmarks.timing import Row, interleaved, ratios, spread
from muxfer.config.study import LedgerConfig
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.trial import Point, Study, Trial

INTERVAL = 10


def resume(*, quick: bool) -> list[Row]:
    """Start trials in one warm process, as an actor that takes trial after trial does."""
    _, trial = proxy(128, f"training.checkpoint_every={INTERVAL}")
    build_seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stopped, cold_folders = Path(folder, "stopped"), (Path(folder, f"cold-{i}") for i in range(1000))

        def start(where: Path) -> TrialRun:
            began = time.perf_counter()
            run = TrialRun(TrialJob(trial=trial, folder=str(where), epoch=1))
            if run.resumed_at == 0:
                build_seconds.append(time.perf_counter() - began)
            run.advance(0.0)
            return run

        again = []
        for extra in (0, 1, 5, INTERVAL - 1):
            run = start(where := Path(folder, f"extra-{extra}"))
            while run.trainer.step < 2 * INTERVAL + extra:
                run.advance(0.0)
            again.append((run.trainer.step - start(where).resumed_at) / INTERVAL)
        Path(folder, "extra-0").rename(stopped)
        build_seconds.clear()
        seconds = interleaved(
            {"resumed": lambda: start(stopped), "cold": lambda: start(next(cold_folders))}, rounds=5 if quick else 20
        )
    ratio = ratios(seconds["resumed"], seconds["cold"])
    beside = {f"{name}_seconds": spread(seconds[name]) for name in ("resumed", "cold")}
    warm = "width 128, model built and one step done, in a warm process"
    stops = f"stopped 0, 1, 5 and {INTERVAL - 1} steps behind a checkpoint, an interval of {INTERVAL}"
    name, later = "resume to the first new step / cold start", "a later trial's start in a warm process"
    alone = "width 128, without Ray's queue"
    return [
        Row(name=name, value=ratio, unit="x", at_most=1.2, contestants=beside, note=warm),
        Row(name="steps done again / checkpoint interval", value=spread(again), at_most=1, note=stops),
        Row(name=later, value=spread(build_seconds), unit=" s", at_most=0.05, note=alone),
    ]


def ledger(*, quick: bool) -> list[Row]:
    """Time from `report` until `flush` returns on SQLite, beside the same lines appended to a file with fsync."""
    num_reports, points_each = (20, 100) if quick else (200, 100)
    num_metrics = num_reports * points_each
    study = Study(name="bench", key="0123456789abcdef", identity={})
    reports = [
        [Point(name=name, step=step, value=1.1 / (step + 1)) for step in range(first, first + points_each // 2)]
        for first in range(0, num_metrics // 2, points_each // 2)
        for name in ("train_loss", "grad_norm")
    ]
    lines = [
        json.dumps({"op": "points", "key": "key00", "points": [[p.name, p.step, p.value] for p in points], "epoch": 1})
        for points in reports
    ]
    rounds = 3 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        config = LedgerConfig(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment="bench")
        kept = MlflowLedger(config, folder=Path(folder, "muxfer"))
        lease = kept.acquire(study)
        try:
            kept.open(study, {}, lease)
            keys = [f"key{number:02d}" for number in range(rounds)]
            for key in keys:
                kept.begin(Trial(key=key, setting={"width": 64}, replicate=0, task={}))
            kept.flush(60)
            fresh = iter(keys)

            def record() -> None:
                key = next(fresh)
                for points in reports:
                    kept.report(key, points)
                kept.flush(60)

            def append() -> None:
                with Path(folder, "raw.jsonl").open("ab", buffering=0) as file:
                    for line in lines:
                        file.write(line.encode() + b"\n")
                    os.fsync(file.fileno())

            seconds = interleaved({"ledger": record, "raw": append}, rounds=rounds)
        finally:
            lease.release()
            kept.close()
    rates = {name: [num_metrics / each for each in times] for name, times in seconds.items()}
    beside = {"raw_append_fsync_metrics_per_second": spread(rates["raw"])}
    note = f"{num_metrics} metrics of one trial, {points_each // 2} a report, spool and database; its run exists"
    name, recorded = "metrics recorded per second, SQLite", spread(rates["ledger"])
    return [
        Row(name=name, value=recorded, at_least=10_000, contestants=beside, note=note),
        Row(name="metrics recorded / raw append+fsync", value=ratios(rates["ledger"], rates["raw"])),
    ]
