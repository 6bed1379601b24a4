"""One driver at a time, and nothing missed or doubled when a driver is stopped or a server goes away."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from benchmarks.faults.bench import stop_between_writes
from muxfer.config.study import LedgerConfig
from muxfer.errors import LedgerUnreachable, StudyBusy
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import acquire
from muxfer.ledger.mlflow_lease import LeaseRuns
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.spool import Spool
from muxfer.ledger.tracking_uri import sqlite_path
from muxfer.ledger.writer import Writer
from tests.contracts.conftest import NUMBERS, PATIENCE, ROOT, STUDY, Server, curve, points, record, runs_of, trial


def test_the_lease_is_one_even_where_a_race_made_two_runs(drive, config):
    ledger, lease = drive()
    lease.release()
    experiment = ledger._store.experiment(f"{config.experiment}.leases", create=False)[0]
    old, new = (LeaseRuns(ledger._store, experiment, STUDY) for _ in range(2))
    epoch = old.read().epoch
    tags = {"muxfer.study": STUDY.key}
    ledger._store.create_run(experiment, name="twin", start_ms=1, tags=tags)  # `old` has not seen this one
    new.read()
    us, them = (dataclasses.replace(Holder.this_process(), token=token) for token in ("us", "them"))
    won = [old.claim(epoch + 1, us), new.claim(epoch + 1, them)]
    assert won == [True, False]
    assert [holder.token for holder in new.read().holders] == ["us"]


def test_drivers_of_two_ledgers_never_work_in_one_folder(drive, config, tmp_path):
    _, lease = drive()
    other = MlflowLedger(
        dataclasses.replace(config, experiment=f"{config.experiment}.other"), folder=tmp_path / "muxfer"
    )
    with pytest.raises(StudyBusy, match=f"another ledger, .*, experiment {config.experiment}: wait until it has ended"):
        other.acquire(STUDY)
    assert other.driver(STUDY) is None, "it gave its own lease back"
    lease.release()
    other.acquire(STUDY).release()


def test_an_epoch_that_no_run_bears_is_nobodys(drive, config, monkeypatch):
    ledger, lease = drive()
    lease.release()
    store = ledger._store
    experiment = store.experiment(f"{config.experiment}.leases", create=False)[0]
    leases, create = LeaseRuns(store, experiment, STUDY), store.create_run
    for run in leases._search():
        store.delete(run.info.run_id)
    monkeypatch.setattr(store, "create_run", lambda *what, **more: store.delete(create(*what, **more).info.run_id))
    epoch = leases.read().epoch
    assert not leases.claim(epoch + 1, Holder.this_process())
    monkeypatch.undo()
    leases.read()
    assert leases.claim(epoch + 1, Holder.this_process())


def test_who_claims_while_another_one_asks_for_the_epochs_that_trials_bear_is_not_overlooked(drive, config):
    ledger, lease = drive()
    lease.release()
    experiment = ledger._store.experiment(f"{config.experiment}.leases", create=False)[0]
    fresh, us = dataclasses.replace(STUDY, key="fresh"), dataclasses.replace(Holder.this_process(), since="the other's")

    def others_claim_and_begin():
        other = LeaseRuns(ledger._store, experiment, fresh)
        other.read()
        assert other.claim(1, us)
        return 1

    leases = LeaseRuns(ledger._store, experiment, fresh)
    with pytest.raises(StudyBusy, match="the other's"):
        acquire(leases, fresh.label, ttl_seconds=600, borne=others_claim_and_begin)
    assert leases.read().epoch == 1


def test_a_ledger_that_knows_less_than_a_spool_and_attempts_on_the_disk_goes_on_above_them(drive, tmp_path):
    """As one that came out of a backup: the spool of its last driver would claim its trials above the new one."""
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.flush(PATIENCE)
    lease.release()
    home = tmp_path / "muxfer" / STUDY.label
    spool = ledger._writer.spool.path.name.replace("-000001.", "-000004.")
    begun = {"op": "begin", "key": "key0", "epoch": 4, "name": "a", "start_ms": 1, "tags": {}, "params": {}, "task": {}}
    (home / spool).write_text(json.dumps(begun) + "\n")
    (home / "spool-0123abcd-9999999999.jsonl").write_text("")  # made up, to leave nobody a number
    newer, lease = drive()
    assert lease.epoch == 5
    newer.begin(trial())
    newer.settle(record(epoch=lease.epoch))
    newer.flush(PATIENCE)
    assert [found.epoch for found in newer.records(STUDY)] == [5]
    lease.release()
    (home / "trials" / "key0" / "attempt-0007-00").mkdir(parents=True)
    assert drive()[1].epoch == 8


def test_where_no_lease_is_left_epochs_go_on_from_those_that_the_trials_bear(drive, config):
    """As after `mlflow gc`: epochs that began anew would make the records of a new driver those of a late one."""
    for _ in range(3):
        ledger, lease = drive()
        ledger.begin(trial())
        ledger.flush(PATIENCE)
        lease.release()
    assert lease.epoch == 3
    experiment = ledger._store.experiment(f"{config.experiment}.leases", create=False)[0]
    for run in ledger._store.search(experiment, {"muxfer.study": STUDY.key}, deleted=True):
        ledger._store.log(run.info.run_id, tags={"muxfer.study": "gone"})
    ledger, lease = drive()
    assert lease.epoch == 4
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    assert [found.epoch for found in ledger.records(STUDY)] == [4]


HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import mlflow.entities
from mlflow import MlflowClient
from muxfer.adapters.mlflow_ledger import MlflowLedger
from muxfer.config import LedgerConfig
from muxfer.errors import StudyBusy
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
    """`holder()` is another driver's process, ready to acquire the lease when a line is sent."""
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


def test_a_living_holder_is_busy_and_a_killed_one_is_taken_over_at_once(holder, drive):
    other = holder()
    assert line(other) == "READY"
    go(other)
    assert line(other) == "HELD"
    with pytest.raises(StudyBusy, match=f"pid {other.pid} on host"):
        drive()
    other.kill()
    other.wait()
    assert drive()[1].epoch == 2  # a wait would be one of 600 s


def test_of_several_processes_that_start_at_once_one_wins(request, holder, tmp_path, config):
    """On SQLite they also race to create the database."""
    fresh = config.tracking_uri.startswith("sqlite")
    uri = f"sqlite:///{tmp_path}/raced.db" if fresh else config.tracking_uri
    drivers = [holder(uri=uri) for _ in range(3)]
    assert [line(driver) for driver in drivers] == ["READY"] * 3
    for driver in drivers:
        go(driver)
    answers = sorted(line(driver)[:4] for driver in drivers)
    assert answers == ["BUSY", "BUSY", "HELD"]


@pytest.mark.parametrize("config", ["sqlite"], indirect=True)
def test_a_database_whose_maker_was_killed_is_made_by_the_next_one(holder, tmp_path):
    """MLflow's migrations are no transaction: on a database that stopped half way they fail for ever."""
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
def test_a_database_that_an_earlier_version_left_half_made_is_made_anew(holder, tmp_path):
    with closing(sqlite3.connect(tmp_path / "half.db")) as connection:
        connection.execute("create table experiments (experiment_id integer primary key)")
        connection.execute("create table runs (run_uuid varchar(32) primary key)")
        connection.execute("create table alembic_version (version_num varchar(32) not null)")
    process = holder(uri=f"sqlite:///{tmp_path}/half.db")
    assert line(process) == "READY"
    go(process)
    assert line(process) == "HELD"


def test_a_stopped_holder_is_taken_over_and_finds_itself_fenced(holder, drive, config):
    other = holder(ttl_seconds=1.0)
    assert line(other) == "READY"
    go(other)
    assert line(other) == "HELD"
    stop_between_writes(other.pid, sqlite_path(config.tracking_uri))
    assert drive(lease_seconds=1.0)[1].epoch == 2
    os.kill(other.pid, signal.SIGCONT)
    assert line(other) == "FENCED"


def test_a_status_that_was_written_late_does_not_stand(drive):
    """As by a driver that had looked, was stopped, and wrote when another one had long ended the trial."""
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    ledger._store.log(run.info.run_id, tags={"muxfer.claim.e0": "1", "muxfer.outcome": "running"})
    ledger._store.set_status(run.info.run_id, "RUNNING")
    ledger._runs._stated[run.info.run_id] = 0
    nobodys = {"op": "settle", "key": "none", "epoch": 1, "end_ms": 1, "record": {}}
    ledger._runs.apply([nobodys])  # what is refused beside it changes nothing
    [run] = runs_of(ledger)
    assert (run.info.status, run.data.tags["muxfer.outcome"]) == ("FINISHED", "finished")
    assert [found.epoch for found in ledger.records(STUDY)] == [lease.epoch]


def test_a_fenced_driver_leaves_no_spool(tmp_path):
    """Who took it over has applied and removed the file, or has never seen it."""
    for others in (True, False):
        spool = Spool(tmp_path / "spool-1.jsonl")
        for number in range(3):
            spool.append({"op": "points", "number": number})
        spool.sync()
        if others:
            other = Spool(tmp_path / "spool-1.jsonl")
            other.acknowledge(other.read()[1])
            spool.acknowledge(spool.appended // 3)
        writer = Writer([spool], lambda operations: None, held=lambda: False, where="nowhere")
        writer.write({"op": "points", "number": 3})
        writer.stop(10, fenced=True)
        assert list(tmp_path.iterdir()) == []


def test_a_spool_that_its_woken_driver_took_away_holds_nobody_up(tmp_path):
    theirs, ours = (Spool(tmp_path / f"spool-{number}.jsonl") for number in (1, 2))
    theirs.append({"op": "points", "number": 1})
    theirs.sync()
    (tmp_path / "spool-1.jsonl").unlink()
    applied = []
    writer = Writer([theirs, ours], applied.extend, held=lambda: True, where="nowhere")
    writer.write({"op": "points", "number": 2})
    writer.flush(PATIENCE)
    writer.stop(10)
    assert applied == [{"op": "points", "number": 2}]
    assert list(tmp_path.iterdir()) == []


class Proxy(socketserver.ThreadingTCPServer):
    """In front of a server: hands every request on, and keeps the answer to itself when told to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), _Relay)
        self.server = server
        self.drop = 0
        self.dropped = 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class _Relay(socketserver.StreamRequestHandler):
    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            got = self.rfile.readline()
            if not got:
                return
            if not got.lower().startswith((b"connection:", b"host:")):
                head += got
        length = next((int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")), 0)
        start, _, rest = head.partition(b"\r\n")
        body = self.rfile.read(length)
        with socket.create_connection(("127.0.0.1", self.server.server.port)) as upstream:
            host = f"Host: 127.0.0.1:{self.server.server.port}\r\nConnection: close\r\n".encode()
            upstream.sendall(start + b"\r\n" + host + rest + body)
            answer = b"".join(iter(lambda: upstream.recv(1 << 16), b""))
        if self.server.drop and start.startswith(b"POST"):
            self.server.drop -= 1
            self.server.dropped += 1
            return
        self.wfile.write(answer)


def test_answers_lost_after_the_commit_double_nothing(server, tmp_path):
    with Proxy(server) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        config = LedgerConfig(tracking_uri=proxy.uri, experiment=f"test {next(NUMBERS)}", lease_seconds=600)
        ledger = MlflowLedger(config, folder=tmp_path)
        lease = ledger.acquire(STUDY)
        ledger.open(STUDY, {}, lease)
        for number in range(3):
            proxy.drop = 3
            ledger.begin(trial(number))
            ledger.report(f"key{number}", points(*range(5)))
            ledger.settle(record(number, epoch=lease.epoch))
            ledger.flush(PATIENCE)
        assert proxy.dropped == 9
        assert sorted(found.key for found in ledger.records(STUDY)) == ["key0", "key1", "key2"]
        assert all(len(curve(ledger, run)) == 5 for n in range(3) for run in runs_of(ledger, n))
        assert [len(runs_of(ledger, n)) for n in range(3)] == [1, 1, 1]
        lease.release()
        ledger.close()
        proxy.shutdown()


def test_a_server_killed_in_the_middle_and_started_again_misses_and_doubles_nothing(tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "server.db")
    server = Server(tmp_path)
    server.start()
    try:
        config = LedgerConfig(tracking_uri=server.uri, lease_seconds=600)
        ledger = MlflowLedger(config, folder=tmp_path / "muxfer")
        lease = ledger.acquire(STUDY)
        ledger.open(STUDY, {}, lease)
        for number in range(4):
            ledger.begin(trial(number))
            for step in range(300):
                ledger.report(f"key{number}", points(step))
            if number == 1:
                server.kill()
            ledger.settle(record(number, epoch=lease.epoch))
        with pytest.raises(LedgerUnreachable, match="run the same command again"):
            ledger.flush(0.3)
        assert lease.held()
        server.start()
        ledger.flush(PATIENCE)
        assert len(ledger.records(STUDY)) == 4
        for number in range(4):
            [run] = runs_of(ledger, number)
            assert curve(ledger, run) == [(step, 1.1 / (step + 1)) for step in range(300)]
        lease.release()
        ledger.close()
    finally:
        server.kill()
