"""One suite for every ledger: MLflow on SQLite, and MLflow through a real server on loopback."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from muxfer.adapters.mlflow_lease import LeaseRuns
from muxfer.adapters.mlflow_ledger import MlflowLedger
from muxfer.config import LedgerConfig
from muxfer.errors import BadInput, LedgerUnreachable, StudyBusy
from muxfer.lease import Holder
from muxfer.trial import Outcome, Point, Record, Study, Trial

ROOT = Path(__file__).parents[2]
STUDY = Study(name="lr-width", key="0123456789abcdef", identity={"optimizer": {"name": "adamw"}, "long": "x" * 20_000})
NUMBERS = itertools.count()
PATIENCE = 120.0


class Server:
    """`mlflow server` on a free port of loopback, to be killed and started again there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
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


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory):
    """A database as the first driver makes it, to be copied: making one takes two seconds."""
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
from muxfer.adapters.mlflow_ledger import LedgerConfig, MlflowLedger, Study
ledger = MlflowLedger(LedgerConfig(tracking_uri="sqlite:///mlflow.db", experiment="first"), folder=Path("."))
lease = ledger.acquire(Study(name="s", key="k", identity={}))
ledger.open(Study(name="s", key="k", identity={}), {}, lease)
ledger.flush(600)
lease.release()
ledger.close()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, fresh_database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_database, folder / "server.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "server"])
def config(request, tmp_path, fresh_database):
    """A ledger of its own for each test: a database, or an experiment of the server."""
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
    """`drive()` is a new driver: a ledger with the study open, and its lease."""
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


def test_what_is_written_is_read_back_by_another_driver(drive, config, tmp_path):
    ledger, lease = drive()
    picture = tmp_path / "sample grid.png"
    picture.write_bytes(b"png")
    ledger.begin(trial())
    ledger.report("key0", points(1, 2))
    ledger.settle(record(epoch=lease.epoch), artifacts=[picture])
    ledger.attach([picture])
    ledger.flush(PATIENCE)
    lease.release()
    ledger.close()
    assert not list((tmp_path / "muxfer").rglob("spool*"))

    reader = MlflowLedger(config, folder=tmp_path)
    assert reader.studies("lr-width") == [STUDY]
    assert reader.studies("other") == []
    [run] = runs_of(reader)
    assert reader.records(STUDY) == [record(epoch=lease.epoch, run_id=run.info.run_id)]
    [parent] = reader._read({"muxfer.kind": "study"})
    assert (parent.info.run_name, parent.info.status) == (STUDY.label, "FINISHED")
    assert artifacts(reader, parent) == {"config.json", "sample grid.png"}
    assert artifacts(reader, run) == {"task.json", "sample grid.png"}
    assert (run.info.run_name, run.info.status) == ("width=64 base_lr=2^-7 seed 0", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["muxfer.outcome"] == "finished"
    assert run.data.params["base_lr"] == "0.0078125"
    assert run.data.params["model.width"] == "64"
    assert run.data.metrics["validation_loss"] == 0.25
    assert curve(reader, run) == [(1, 0.55), (2, 1.1 / 3)]


def test_the_configuration_comes_back_without_secrets_and_a_shorter_one_replaces_a_longer(drive):
    ledger, lease = drive()
    lease.release()
    for config in ({"long": "x" * 30_000}, {"ledger": {"tracking_uri": "http://me:secret@host/", "n": 1}}):
        lease = ledger.acquire(STUDY)
        ledger.open(STUDY, config, lease)
        lease.release()
    assert ledger.config(STUDY) == {"ledger": {"tracking_uri": "http://***@host/", "n": 1}}
    lease = ledger.acquire(STUDY)
    ledger.open(STUDY, None, lease)
    assert ledger.config(STUDY)["ledger"]["n"] == 1
    lease.release()
    with pytest.raises(BadInput, match="no configuration"):
        ledger.config(dataclasses.replace(STUDY, key="0" * 16))


def test_a_target_carries_its_lineage_and_its_files(drive, tmp_path):
    ledger, lease = drive()
    weights = tmp_path / "ema.safetensors"
    weights.write_bytes(b"weights")
    ledger.begin(trial(kind="target", lineage={"source": "lr-width", "plan_hash": "abc"}))
    ledger.settle(record(epoch=lease.epoch, kind="target"))
    ledger.attach([weights], key="key0")
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    assert run.info.run_name == "target width=64 base_lr=2^-7 seed 0"
    assert json.loads(run.data.tags["muxfer.lineage.0"]) == {"source": "lr-width", "plan_hash": "abc"}
    assert artifacts(ledger, run) == {"task.json", "ema.safetensors"}
    assert [found.kind for found in ledger.records(STUDY)] == ["target"]


def test_each_outcome_has_its_status(drive):
    ledger, lease = drive()
    wanted = {
        Outcome.FINISHED: "FINISHED",
        Outcome.DIVERGED: "FINISHED",
        Outcome.PRUNED: "KILLED",
        Outcome.FAILED: "FAILED",
    }
    for number, outcome in enumerate(wanted):
        ledger.begin(trial(number))
        metric = 0.5 if outcome is Outcome.FINISHED else None
        error = "é" * 50_000 if outcome is Outcome.FAILED else None
        ledger.settle(record(number, epoch=lease.epoch, outcome=outcome, metric=metric, error=error))
    ledger.begin(trial(9))
    ledger.flush(PATIENCE)
    records = {found.key: found for found in ledger.records(STUDY)}
    assert {key: found.outcome for key, found in records.items()} == {f"key{n}": out for n, out in enumerate(wanted)}
    assert [runs_of(ledger, n)[0].info.status for n in range(4)] == list(wanted.values())
    assert runs_of(ledger, 9)[0].info.status == "RUNNING"
    lease.release()
    assert runs_of(ledger, 9)[0].info.status == "KILLED"


def test_the_same_operations_twice_change_nothing(drive):
    ledger, lease = drive()
    operations = []
    apply = ledger._writer._apply

    def twice(some):
        operations.extend(some)
        apply(some)

    ledger._writer._apply = twice
    ledger.begin(trial())
    ledger.report("key0", points(*range(1500)))
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    [before] = runs_of(ledger)
    ledger._runs._known.clear()
    apply(operations)
    [after] = runs_of(ledger)
    assert len(curve(ledger, after)) == 1500
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")


def test_a_run_that_a_late_create_made_twice_is_settled_by_a_fixed_rule(drive):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.report("key0", points(1))
    ledger.flush(PATIENCE)
    [ours] = runs_of(ledger)
    tags = {name: ours.data.tags[name] for name in ("muxfer.key", "muxfer.study", "muxfer.kind")}
    for start_ms in (1, ours.info.start_time):
        ledger._store.create_run(ours.info.experiment_id, name="late", start_ms=start_ms, tags=tags)
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    [left] = runs_of(ledger)
    assert left.info.run_id == ours.info.run_id
    ledger._store.create_run(ours.info.experiment_id, name="later still", start_ms=1, tags=tags)
    assert [found.run_id for found in ledger.records(STUDY)] == [ours.info.run_id]
    ledger.flush(PATIENCE)
    assert len(runs_of(ledger)) == 1


def test_a_late_record_of_an_older_epoch_does_not_count(drive):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.flush(PATIENCE)
    late = dataclasses.replace(record(epoch=lease.epoch), metric=0.01)
    apply, known = ledger._runs.apply, dict(ledger._runs._known)
    lease.release()
    ledger.close()

    newer, newer_lease = drive()
    assert newer_lease.epoch > lease.epoch
    newer.begin(trial())
    newer.flush(PATIENCE)
    operation = {"op": "settle", "key": "key0", "end_ms": 1, "epoch": lease.epoch, "record": late.to_dict()}
    apply([operation])
    assert newer.records(STUDY) == []
    # even where the fenced driver does not look: what it writes carries its epoch
    newer._store.log(known["key0"][0], tags={f"muxfer.record.e{lease.epoch}": json.dumps(late.to_dict())})
    assert newer.records(STUDY) == []
    newer.settle(record(epoch=newer_lease.epoch))
    newer.flush(PATIENCE)
    apply([operation])
    assert [(found.metric, found.epoch) for found in newer.records(STUDY)] == [(0.25, newer_lease.epoch)]


def test_what_a_killed_driver_left_in_its_spool_is_replayed_before_records_are_read(drive, tmp_path):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("away"))
    ledger.begin(trial())
    ledger.report("key0", points(1, 2, 3))
    ledger.settle(record(epoch=lease.epoch))
    with pytest.raises(LedgerUnreachable, match="away"):
        ledger.flush(0.1)
    ledger.close()
    lease.before_release = None
    lease.release()
    [spool] = (tmp_path / "muxfer").rglob("spool*.jsonl")
    spool.write_bytes(spool.read_bytes() + b'{"op":"points","key":"ke')
    newer, _ = drive()
    assert [found.epoch for found in newer.records(STUDY)] == [lease.epoch]
    assert curve(newer, runs_of(newer)[0]) == [(1, 0.55), (2, 1.1 / 3), (3, 0.275)]
    assert not spool.exists()


def test_a_run_that_a_person_deleted_does_not_hold_up_the_others(drive, caplog):
    ledger, lease = drive()
    ledger.begin(trial(0))
    ledger.begin(trial(1))
    ledger.flush(PATIENCE)
    ledger._store.delete(runs_of(ledger, 0)[0].info.run_id)
    for number in (0, 1):
        ledger.report(f"key{number}", points(1))
        ledger.settle(record(number, epoch=lease.epoch))
    ledger.flush(PATIENCE)
    assert [found.key for found in ledger.records(STUDY)] == ["key1"]
    assert "refused a write" in caplog.text


def test_nothing_to_do_writes_nothing(drive, tmp_path):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    lease.release()
    ledger.close()
    again, lease = drive()
    again.records(STUDY)
    assert not again._written
    lease.release()
    assert not list((tmp_path / "muxfer").rglob("spool*"))


def test_a_deleted_experiment_is_refused_with_a_remedy(drive, config):
    ledger, _ = drive()
    experiment = client_of(ledger).get_experiment_by_name(config.experiment)
    client_of(ledger).delete_experiment(experiment.experiment_id)
    with pytest.raises(BadInput, match=r"was deleted .*experiments restore -x .*ledger.experiment=NAME"):
        ledger.records(STUDY)
    client_of(ledger).restore_experiment(experiment.experiment_id)


def test_a_newer_ledger_is_refused(drive):
    ledger, _ = drive()
    [parent] = ledger._read({"muxfer.kind": "study"})
    ledger._store.log(parent.info.run_id, tags={"muxfer.schema": "99"})
    for read in (lambda: ledger.records(STUDY), lambda: ledger.studies("lr-width")):
        with pytest.raises(BadInput, match=r"newer muxfer .*99.*upgrade"):
            read()


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


def test_a_stopped_holder_is_taken_over_and_finds_itself_fenced(holder, drive):
    other = holder(ttl_seconds=1.0)
    assert line(other) == "READY"
    go(other)
    assert line(other) == "HELD"
    os.kill(other.pid, signal.SIGSTOP)
    assert drive(lease_seconds=1.0)[1].epoch == 2
    os.kill(other.pid, signal.SIGCONT)
    assert line(other) == "FENCED"


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


def test_a_relative_path_is_meant_from_where_it_was_given_and_artifacts_lie_beside_it(
    tmp_path, monkeypatch, fresh_database
):
    home = tmp_path / "my runs"
    home.mkdir()
    shutil.copy(fresh_database, home / "mlflow.db")
    monkeypatch.chdir(home)
    ledger = MlflowLedger(LedgerConfig(tracking_uri="sqlite:///mlflow.db"), folder=home / "muxfer")
    monkeypatch.chdir(tmp_path)
    lease = ledger.acquire(STUDY)
    ledger.open(STUDY, {"a": 1}, lease)
    ledger.flush(PATIENCE)
    [parent] = ledger._read({"muxfer.kind": "study"})
    assert parent.info.artifact_uri.startswith(str(home / "mlruns"))
    assert artifacts(ledger, parent) == {"config.json"}
    lease.release()
    ledger.close()
    assert {path.name for path in tmp_path.iterdir()} == {"my runs"}


def test_an_artifact_that_finds_no_place_does_not_hold_up_the_records(drive, config, tmp_path, caplog):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"png")
    if config.tracking_uri.startswith("sqlite"):
        place = Path(run.info.artifact_uri)
        shutil.rmtree(place)
        place.write_text("a file where the folder was")
    else:
        picture.unlink()
    ledger.settle(record(epoch=lease.epoch), artifacts=[picture])
    ledger.flush(PATIENCE)
    assert [found.key for found in ledger.records(STUDY)] == ["key0"]
    assert "artifact was not taken" in caplog.text or "is gone" in caplog.text
