"""The ledgers that the contract tests use: MLflow on SQLite, and MLflow through a real server on loopback."""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks.faults.harness.server import hold_port
from benchmarks.faults.harness.settings import IDENTITY
from muxfer.config.study import LedgerConfig
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.trial import Outcome, Point, Record, Study, Trial

ROOT = Path(__file__).parents[2]
STUDY = Study(name="lr-width", key="0123456789abcdef", identity={**IDENTITY, "long": "x" * 20_000})
NUMBERS = itertools.count()
PATIENCE = 120.0


class Server:
    """`mlflow server` on a free port of loopback. It can be killed and started again on that port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with hold_port(self.port) as held:
            self.port = held.getsockname()[1]
            self._start()

    def _start(self) -> None:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *command, *store],
            cwd=self.folder,
            env=os.environ | quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="package")
def fresh_database(tmp_path_factory):
    """A database as the first driver makes it. Tests copy it, because making one takes two seconds."""
    folder = tmp_path_factory.mktemp("fresh")
    done = subprocess.run(
        [sys.executable, "-c", CREATE, str(ROOT)], cwd=folder, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert {path.name for path in folder.iterdir()} <= {"mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlruns", "s-k"}
    return folder / "mlflow.db"


CREATE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from muxfer.config.study import LedgerConfig
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.trial import Study
ledger = MlflowLedger(LedgerConfig(tracking_uri="sqlite:///mlflow.db", experiment="first"), folder=Path("."))
lease = ledger.acquire(Study(name="s", key="k", identity={}))
ledger.open(Study(name="s", key="k", identity={}), {}, lease)
ledger.flush(600)
lease.release()
ledger.close()
"""


@pytest.fixture(scope="package")
def server(tmp_path_factory, fresh_database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_database, folder / "server.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def config(request, tmp_path, fresh_database):
    """The configuration of a new ledger for each test: a database, or an experiment of the server."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if request.param == "server":
        uri = request.getfixturevalue("server").uri
    else:
        shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return LedgerConfig(
        tracking_uri=uri, experiment=f"test {next(NUMBERS)}", lease_seconds=600, patience_seconds=PATIENCE
    )


@pytest.fixture
def drive(config, tmp_path):
    """`drive()` starts a new driver. It returns a ledger with the study open, and its lease."""
    opened = []

    def start(**changes):
        ledger = MlflowLedger(dataclasses.replace(config, **changes), folder=tmp_path / "muxfer")
        lease = ledger.acquire(STUDY)
        opened.append((ledger, lease))
        ledger.open(STUDY, {"optimizer": {"base_lr": 0.1}}, lease)
        return ledger, lease

    yield start
    for ledger, lease in opened:
        lease.release()
        ledger.close()


def own_file(tmp_path, name="sample grid.png", content=b"png"):
    """A new file in the study's folder. A study attaches files from there only."""
    file = tmp_path / "muxfer" / STUDY.label / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def trial(number=0, **changes):
    task = {"model": {"width": 64, "num_classes": None}, "optimizer": {"name": "adamw", "base_lr": 2.0**-7}}
    setting = {"width": 64, "base_lr": 2.0**-7}
    return Trial(**{"key": f"key{number}", "setting": setting, "replicate": number, "task": task} | changes)


def points(*steps):
    return [Point(name="train_loss", step=step, value=1.1 / (step + 1)) for step in steps]


def record(number=0, *, epoch, **changes):
    same = {"key": f"key{number}", "setting": trial().setting, "replicate": number, "epoch": epoch}
    return Record(**same | {"outcome": Outcome.FINISHED, "metric": 0.25, "step": 10, "train_seconds": 1.5} | changes)


def client_of(ledger):
    return ledger._store._connect()


def runs_of(ledger, number=0):
    return ledger._read({"muxfer.key": f"key{number}"})


def curve(ledger, run, name="train_loss"):
    return [(point.step, point.value) for point in client_of(ledger).get_metric_history(run.info.run_id, name)]


def artifacts(ledger, run):
    return {file.path for file in client_of(ledger).list_artifacts(run.info.run_id)}
