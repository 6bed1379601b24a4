"""Drivers in processes of their own: one drives, and a dead or stopped one is taken over."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from benchmarks.faults.harness.sweep import stop_between_writes
from muxfer.errors import StudyBusy
from muxfer.ledger.tracking_uri import sqlite_path
from tests.contracts.conftest import ROOT, STUDY

pytestmark = pytest.mark.slow

HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import mlflow.entities
from mlflow import MlflowClient
from muxfer.config.study import LedgerConfig
from muxfer.errors import StudyBusy
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.trial import Study
config = LedgerConfig(tracking_uri=sys.argv[2], experiment=sys.argv[3], lease_seconds=float(sys.argv[4]))
print("READY", flush=True)
sys.stdin.readline()
try:
    lease = MlflowLedger(config, folder=Path(".")).acquire(Study(name="lr-width", key=sys.argv[5], identity={}))
    print("HELD", flush=True)
    while lease.held():
        time.sleep(0.05)
    print("FENCED", flush=True)
except StudyBusy as busy:
    print(f"BUSY {busy}", flush=True)
"""


@pytest.fixture
def holder(config, tmp_path):
    """`holder()` starts another driver's process. It acquires the lease when a line is sent."""
    processes = []

    def start(ttl_seconds=600.0, uri=config.tracking_uri):
        arguments = [str(ROOT), uri, config.experiment, str(ttl_seconds), STUDY.key]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *arguments],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def line(process):
    return process.stdout.readline().strip()


def test_living_process_is_busy_and_a_killed_one_is_taken_over_at_once(holder, drive):
    other = holder()
    assert line(other) == "READY"
    go(other)
    assert line(other) == "HELD"
    with pytest.raises(StudyBusy, match=f"pid {other.pid} on host"):
        drive()
    other.kill()
    other.wait()
    assert drive()[1].epoch == 2  # a wait would be one of 600 s


def test_one_of_several_concurrent_processes_wins(request, holder, tmp_path, config):
    """On SQLite the processes also race to create the database."""
    fresh = config.tracking_uri.startswith("sqlite")
    uri = f"sqlite:///{tmp_path}/raced.db" if fresh else config.tracking_uri
    drivers = [holder(uri=uri) for _ in range(3)]
    assert [line(driver) for driver in drivers] == ["READY"] * 3
    for driver in drivers:
        go(driver)
    answers = sorted(line(driver)[:4] for driver in drivers)
    assert answers == ["BUSY", "BUSY", "HELD"]


@pytest.mark.parametrize("config", ["sqlite"], indirect=True)
def test_database_is_made_anew_after_its_maker_was_killed(holder, tmp_path):
    """MLflow's migrations are no transactions. On a half-made database they would fail for ever."""
    first, second = (holder(uri=f"sqlite:///{tmp_path}/killed.db") for _ in range(2))
    assert [line(first), line(second)] == ["READY", "READY"]
    go(first)
    while sum(path.stat().st_size for path in tmp_path.glob("killed.db.new")) < 50_000:
        assert first.poll() is None
    first.kill()
    first.wait()
    assert not (tmp_path / "killed.db").exists()
    go(second)
    assert line(second) == "HELD"
    second.kill()
    second.wait()
    assert {path.name.removeprefix("killed.db") for path in tmp_path.glob("killed.db*")} <= {"", "-wal", "-shm"}


@pytest.mark.parametrize("config", ["sqlite"], indirect=True)
def test_half_made_database_of_an_earlier_version_is_made_anew(holder, tmp_path):
    with closing(sqlite3.connect(tmp_path / "half.db")) as connection:
        connection.execute("create table experiments (experiment_id integer primary key)")
        connection.execute("create table runs (run_uuid varchar(32) primary key)")
        connection.execute("create table alembic_version (version_num varchar(32) not null)")
    process = holder(uri=f"sqlite:///{tmp_path}/half.db")
    assert line(process) == "READY"
    go(process)
    assert line(process) == "HELD"


def test_stopped_process_is_taken_over_and_ends_when_woken(holder, drive, config):
    other = holder(ttl_seconds=1.0)
    assert line(other) == "READY"
    go(other)
    assert line(other) == "HELD"
    stop_between_writes(other.pid, sqlite_path(config.tracking_uri))
    assert drive(lease_seconds=1.0)[1].epoch == 2
    os.kill(other.pid, signal.SIGCONT)
    assert line(other) == "FENCED"
