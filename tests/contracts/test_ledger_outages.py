"""A ledger behind a real server loses and doubles nothing when the server fails or its responses get lost."""

import dataclasses
import shutil
import threading
from pathlib import Path

import pytest

from benchmarks.faults.harness.server import Proxy
from benchmarks.faults.runtime.outages import LOST
from muxfer.config.study import LedgerConfig
from muxfer.errors import LedgerUnreachable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from tests.contracts.conftest import (
    NUMBERS,
    PATIENCE,
    STUDY,
    Server,
    artifacts,
    curve,
    own_file,
    points,
    record,
    runs_of,
    trial,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port, database=Path(server.folder, "server.db"))
    yield proxy
    proxy.close()


@pytest.fixture
def config(proxy):
    name = f"outage {next(NUMBERS)}"
    return LedgerConfig(tracking_uri=proxy.uri, experiment=name, lease_seconds=600, patience_seconds=PATIENCE)


def write(ledger, lease, *, file):
    ledger.begin(trial())
    ledger.report("key0", points(1, 2))
    ledger.settle(record(epoch=lease.epoch), artifacts=[file])
    ledger.flush(PATIENCE)


@pytest.mark.parametrize("begin", [Proxy.down, Proxy.break_], ids=["down", "answers 500"])
def test_reads_of_a_driver_wait_until_an_outage_ends(drive, proxy, begin, tmp_path):
    ledger, lease = drive()
    write(ledger, lease, file=tmp_path / "none")
    begin(proxy)
    mending = threading.Timer(1.0, proxy.mend)
    mending.start()
    assert [found.key for found in ledger.records(STUDY)] == ["key0"]
    mending.join()
    begin(proxy)
    mending = threading.Timer(1.0, proxy.mend)
    mending.start()
    assert ledger.curves(STUDY, "train_loss") == {"key0": points(1, 2)}
    mending.join()


def test_reader_without_a_lease_is_refused_at_once(config, proxy, tmp_path):
    reader = MlflowLedger(dataclasses.replace(config, patience_seconds=1e9), folder=tmp_path)
    assert reader.records(STUDY) == []
    proxy.down()
    with pytest.raises(LedgerUnreachable, match=r"gave no answer .*start it"):
        reader.records(STUDY)


def test_driver_is_refused_when_its_patience_ends(drive, proxy):
    ledger, _ = drive(patience_seconds=0.3)
    proxy.down()
    with pytest.raises(LedgerUnreachable, match="gave no answer"):
        ledger.records(STUDY)
    proxy.mend()


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: f"{lost.method}{lost.path_ends}{' late' if lost.late else ''}")
def test_lost_response_loses_and_doubles_nothing(drive, proxy, lost, tmp_path):
    file = own_file(tmp_path, "picture.png")
    ledger, lease = drive()
    proxy.lose(lost)
    write(ledger, lease, file=file)
    assert proxy.still_to_lose() == []
    assert [found.key for found in ledger.records(STUDY)] == ["key0"]
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    assert curve(ledger, run) == [(point.step, point.value) for point in points(1, 2)]
    assert (run.info.status, artifacts(ledger, run)) == ("FINISHED", {"task.json", "picture.png"})


def test_driver_reads_records_again_after_it_wrote(drive, tmp_path):
    ledger, lease = drive()
    assert ledger.records(STUDY) == []
    assert ledger.records(STUDY) == []
    write(ledger, lease, file=tmp_path / "none")
    [found] = ledger.records(STUDY)
    assert ledger.records(STUDY) == [found]
    ledger.begin(trial(1))
    ledger.settle(record(1, epoch=lease.epoch))
    ledger.flush(PATIENCE)
    assert {record.key for record in ledger.records(STUDY)} == {"key0", "key1"}


def test_many_lost_responses_double_nothing(drive, proxy):
    ledger, lease = drive()
    for number in range(3):
        proxy.lose(*(lost for lost in LOST if lost.method == "POST" and not lost.late))
        ledger.begin(trial(number))
        ledger.report(f"key{number}", points(*range(5)))
        ledger.settle(record(number, epoch=lease.epoch))
        ledger.flush(PATIENCE)
        assert proxy.still_to_lose() == []
    assert sorted(found.key for found in ledger.records(STUDY)) == ["key0", "key1", "key2"]
    assert [len(runs_of(ledger, number)) for number in range(3)] == [1, 1, 1]
    assert all(len(curve(ledger, run)) == 5 for number in range(3) for run in runs_of(ledger, number))


def test_restart_of_a_killed_server_loses_and_doubles_nothing(tmp_path, fresh_database):
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
