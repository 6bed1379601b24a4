"""What a ledger behind a real server keeps when that server goes away, or loses an answer, for a moment."""

import dataclasses
import threading
from pathlib import Path

import pytest

from benchmarks.faults.harness.proxy import Proxy
from benchmarks.faults.runtime.outages import LOST
from muxfer.config.study import LedgerConfig
from muxfer.errors import LedgerUnreachable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from tests.contracts.conftest import (
    NUMBERS,
    PATIENCE,
    STUDY,
    artifacts,
    curve,
    own_file,
    points,
    record,
    runs_of,
    trial,
)


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
def test_a_drivers_reads_wait_an_outage_out(drive, proxy, begin, tmp_path):
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


def test_who_only_looks_is_refused_at_once(config, proxy, tmp_path):
    reader = MlflowLedger(dataclasses.replace(config, patience_seconds=1e9), folder=tmp_path)
    assert reader.records(STUDY) == []
    proxy.down()
    with pytest.raises(LedgerUnreachable, match=r"gave no answer .*start it"):
        reader.records(STUDY)


def test_a_driver_whose_patience_is_at_an_end_is_refused(drive, proxy):
    ledger, _ = drive(patience_seconds=0.3)
    proxy.down()
    with pytest.raises(LedgerUnreachable, match="gave no answer"):
        ledger.records(STUDY)
    proxy.mend()


@pytest.mark.parametrize("lost", LOST, ids=lambda lost: f"{lost.method}{lost.path_ends}{' late' if lost.late else ''}")
def test_a_lost_answer_makes_nothing_twice_and_loses_nothing(drive, proxy, lost, tmp_path):
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


def test_what_a_driver_read_is_read_again_once_it_has_written(drive, tmp_path):
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
