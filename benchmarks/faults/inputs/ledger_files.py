"""Hostile content in the ledger's files: tags, the database, spools, artifacts, and Ray's state."""

import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.refusals import assert_refused
from benchmarks.faults.harness.sweep import Sweep
from muxfer.config.study import LedgerConfig
from muxfer.executors.base import TrialJob
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.study.resolve import resolve
from muxfer.study.session import drive, open_ledger
from muxfer.study.trials import grid_trials
from muxfer.trial import Outcome, Study, Trial

PRIVATE = "a key of the user's own, outside the study"
TINY = (
    *("search.width=[16]", "search.base_lr=[2**-8]", "model.base_width=16", "model.depth=1", "model.patch=4"),
    *("training.steps=20", "training.batch_size=8", "training.warmup_steps=0", "training.checkpoint_every=10"),
    *("evaluation.timesteps=1", "compute.slots=1"),
)
TUNE_FILES = ("tuner.pkl", "experiment_state-1.json", "searcher-state-1.pkl", "params.pkl", ".is_under_restoration")


def ledger_tags(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Tags that hold muxfer's JSON, overwritten with other text or with JSON of another form."""
    study, _, record = _ledger_of_one()
    identity: Any = study.identity
    keys: list[Any] = ["../../outside", "a b", ""]
    identities: list[Any] = [
        *({}, identity | {"data": {}}, identity | {"objective": {"name": ["ddpm"]}}, identity | {"model": 5}),
        *(identity | {name: rng.choice([None, [1], 0.5])} for name in ("data_fingerprint", "numerics", "training")),
    ]
    configs: list[Any] = [{}, {"search": 5}, {"training": {"steps": "x"}}]
    wrong = {"step": "x", "epoch": None, "train_seconds": "a", "checkpoint": 5, "metric": True, "outcome": ["finished"]}
    records: list[Any] = [
        *({}, record | {"setting": 5}, record | {"setting": {"width": [16]}}, record | {"step": 10**30}),
        *(record | {name: value} for name, value in wrong.items()),
    ]
    formed = {
        "muxfer.study": keys,
        "muxfer.identity.0": [json.dumps(one) for one in identities],
        "muxfer.config.0": [json.dumps(one) for one in configs],
        "muxfer.record.e1": [json.dumps(one) for one in records],
    }
    tag = rng.choice([*formed, "muxfer.identity.parts"])
    plain = ("NaN", "5", '"x"', "[1]", "9" * 5000, "", "null")
    text = rng.choice([bomb.decode("latin-1"), "[" * 7000, '{"a":' * 1200, *plain])
    if tag in formed and (tag == "muxfer.study" or rng.random() < 0.7):
        text = rng.choice(formed[tag])
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        changed = connection.execute("update tags set value = ? where key = ?", (text, tag)).rowcount
        assert changed, f"no run has a tag {tag}"
    command = rng.choice(["status", "verdict", "report", "transfer"])
    message = Sweep(home, TINY).run(command=command).expect(2).err.strip()
    shown = f"{command} with {tag} {text[:200]!r}: {message}"
    assert len(message.splitlines()) == 1, shown
    assert tag == "muxfer.config.0" or "not written by muxfer" in message, shown


def database_file(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A pipe, a folder or other content in place of the database."""
    file = home / "mlflow.db"
    contents = (partial(Path.write_bytes, data=content) for content in (bomb, b"SQLite format 3\0" + bomb))
    makers: list[Callable[[Path], object]] = [os.mkfifo, os.mkdir, *contents]
    rng.choice(makers)(file)
    config = LedgerConfig(tracking_uri=f"sqlite:///{file}")
    assert_refused(lambda: MlflowLedger(config, folder=home / "muxfer").studies())


def spool_file(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A spool that somebody else wrote. Bad lines are skipped, and no file from outside the study is sent."""
    study, trial, _ = _ledger_of_one()
    request = resolve("lr-width", TINY)

    def replay() -> Path:
        with drive(request, recorded=study) as session:
            spool: Path = session.ledger._writer.spool.path  # type: ignore[attr-defined]
            return spool

    spool = replay()
    spool = spool.with_name(f"{spool.stem[:-6]}000001.jsonl")
    private = home.parent / "outside" / "id_rsa"
    private.write_text(PRIVATE)
    if rng.random() < 0.3:
        make = rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink(private, path)])
        make(spool if (end := rng.choice(["jsonl", "offset"])) == "jsonl" else spool.with_suffix(".offset"))
        if end == "offset":
            spool.write_text("{}\n")
        assert_refused(replay, "is no file", "move it away")
        assert private.read_text() == PRIVATE
        return
    (request.files.path / "link.svg").symlink_to(private)
    (request.files.path / "folder").symlink_to(private.parent)
    (request.files.path / "own.svg").write_text("own")
    up = os.path.relpath(private, request.files.path)
    absolute = [f"{request.files.path}/{up}", f"{request.files.path}/link.svg"]
    outside = rng.choice([str(private), up, *absolute, "link.svg", "folder/id_rsa"])
    key = rng.choice([None, trial.key])
    wrong: Any = {"epoch": "x", "points": 5, "path": [outside], "end_ms": 10**30, "paused": [[]], "record": {"step": 1}}
    shape = {"key": key, "epoch": 1, "name": "x", "text": "x", **wrong}
    operations: list[Any] = [
        *({"op": "file", "key": key, "path": outside, "epoch": 1}, {"op": "file", **wrong}),
        *({"op": op, **shape} for op in ("points", "settle", "rest")),
        {"op": "file", "key": None, "path": str(request.files.path / "own.svg"), "epoch": 1},
    ]
    lines = [bomb.replace(b"\n", b" "), *(json.dumps(operation).encode() for operation in operations)]
    spool.write_bytes(b"\n".join(lines) + b"\n")
    if offset := rng.choice(["", "-5", "9" * 10, "9" * 5000, "x"]):
        spool.with_suffix(".offset").write_text(offset)
    replay()
    assert not spool.exists(), "the spool was not replayed"
    sent = [file for file in (home / "mlruns").rglob("*") if file.is_file()]
    assert "own.svg" in {file.name for file in sent}, sent
    assert not [file for file in sent if PRIVATE in file.read_text(errors="replace")], f"{outside} was sent"


def artifacts(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Pickles among MLflow's artifacts, where other programs keep models. None of them may be read."""
    study, trial, _ = _ledger_of_one()
    for name in ("model.pkl", "python_model.pkl", "task.json", "config.json", "MLmodel", "report.html"):
        for folder in [path for path in (home / "mlruns").rglob("artifacts") if path.is_dir()]:
            (folder / name).write_bytes(bomb)
    with open_ledger(resolve("lr-width", TINY)) as ledger:
        assert ledger.studies() == [study]
        assert ledger.config(study)["training"]["steps"] == 20
        assert [record.metric for record in ledger.records(study)] == [1.0]
        assert ledger.curves(study, "train_loss") == {trial.key: []}


def _ledger_of_one() -> tuple[Study, Trial, dict[str, Any]]:
    """Write a study with one finished trial to the ledger of the current folder: the study, the trial, its record."""
    request = resolve("lr-width", TINY)
    [trial] = grid_trials(request.config, fingerprint=request.fingerprint)
    record = TrialJob(trial=trial, folder="", epoch=1).record(Outcome.FINISHED, metric=1.0, step=1)
    with drive(request) as session:
        assert session.lease.epoch == 1
        session.ledger.begin(trial)
        session.ledger.settle(record)
        session.ledger.flush(60)
    return request.study, trial, record.to_dict()


def ray_state(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Files from which Tune would restore, in every folder of the study, before and while a real sweep runs there."""
    sweep = Sweep(home, TINY)
    study = resolve("lr-width", TINY).files.path
    for folder in (study, study / ".ray-x", study / "trials", home / "trials", home / "tune", home / "ray_results"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in TUNE_FILES:
            (folder / name).write_bytes(bomb)
    trials = sweep.run().expect(0).result["trials"]
    assert [trial["outcome"] for trial in trials] == ["finished"]
