"""The spool and its writer: each operation arrives once and in order, after crashes, full disks and outages."""

import os
import threading
from functools import partial
from pathlib import Path

import pytest

from muxfer.errors import BadInput, LedgerUnreachable, StudyBusy
from muxfer.ledger import writer
from muxfer.ledger.spool import Spool
from muxfer.ledger.writer import Writer
from tests.full_disk import full_disk


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(writer, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(writer, "BACKOFF_SECONDS", (0.001, 0.01))


def numbered(*numbers):
    return [{"op": "points", "n": number} for number in numbers]


def filled(path, *numbers):
    spool = Spool(path)
    for operation in numbered(*numbers):
        spool.append(operation)
    return spool


def drained(spool):
    drained_operations = []
    while spool.pending_bytes:
        operations, offset = spool.read()
        drained_operations += operations
        spool.acknowledge(offset)
    return drained_operations


class Sink:
    """A ledger whose first calls fail."""

    def __init__(self, failures=0):
        self.failures = failures
        self.taken = []

    def __call__(self, operations):
        if self.failures:
            self.failures -= 1
            raise LedgerUnreachable("no answer")
        self.taken += operations


def writer_for(spools, sink, held=lambda: True):
    return Writer(spools, sink, held=held, surely_held=held, where="the ledger")


def test_spool_returns_operations_in_order_and_removes_its_files(tmp_path):
    spool = Spool(tmp_path / "s" / "spool.jsonl")
    assert not spool.path.parent.exists()
    for operation in numbered(*range(5)):
        spool.append(operation)
    assert drained(spool) == numbered(*range(5))
    assert list(spool.path.parent.iterdir()) == []
    spool.append(numbered(9)[0])
    assert drained(spool) == numbered(9)


def test_spool_is_read_in_chunks_from_the_acknowledged_offset(tmp_path):
    spool = filled(tmp_path / "spool.jsonl", *range(20))
    first, offset = spool.read(60)
    assert 0 < len(first) < 20
    spool.acknowledge(offset)
    spool.close()
    assert first + drained(Spool(tmp_path / "spool.jsonl")) == numbered(*range(20))


@pytest.mark.parametrize("cut", range(1, 22))
def test_line_cut_short_by_a_crash_is_dropped(tmp_path, cut):
    path = tmp_path / "spool.jsonl"
    filled(path, 1, 2).close()
    line = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes()[: -min(cut, len(line))])
    again = Spool(path)
    again.append(numbered(3)[0])
    assert drained(again) == numbered(1, 3)


def test_damaged_line_is_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "spool.jsonl"
    path.write_text('{"n":1}\n{"n":\n{"n":3}\n')
    assert drained(Spool(path)) == [{"n": 1}, {"n": 3}]
    assert "damaged line" in caplog.text


def test_offset_without_a_spool_is_ignored(tmp_path):
    (tmp_path / "spool.offset").write_text("1000")
    filled(tmp_path / "spool.jsonl", 1).close()
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


@pytest.mark.parametrize("offset", ["-5", "1000000", "9" * 5000, "x", "", "\u0663x", "1.5"])
def test_impossible_offset_is_ignored(tmp_path, offset):
    (tmp_path / "spool.jsonl").write_text('{"n":1}\n{"n":2}\n')
    (tmp_path / "spool.offset").write_text(offset)
    assert drained(Spool(tmp_path / "spool.jsonl")) == [{"n": 1}, {"n": 2}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["jsonl", "offset", "tmp"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "victim")])
def test_folder_pipe_or_link_in_place_of_a_spool_is_refused(tmp_path, make, end):
    (tmp_path / "victim").write_text("precious")
    make(tmp_path / f"spool.{end}")
    with pytest.raises(BadInput, match=rf"spool.{end} is no file .*move it away"):
        Spool(tmp_path / "spool.jsonl").append(numbered(1)[0])
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_value_never_reaches_the_spool(tmp_path, value):
    spool = Spool(tmp_path / "spool.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        spool.append({"value": value})
    assert spool.pending_bytes == 0


def test_operations_survive_a_full_disk_in_memory(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    with full_disk(30):
        for operation in numbered(1, 2, 3):
            spool.append(operation)
        assert spool.path.read_bytes().endswith(b"\n")
        assert drained(spool) == numbered(1, 2, 3)
    spool.append(numbered(4)[0])
    assert drained(spool) == numbered(4)


def test_operations_go_to_the_disk_when_it_has_room_again_during_an_outage(tmp_path):
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], Sink(failures=10**9))
    with full_disk(0):
        writer.write(numbered(1)[0])
        with pytest.raises(LedgerUnreachable, match="can't take them either, but the checkpoints hold them: free some"):
            writer.flush(1.0)
    with pytest.raises(LedgerUnreachable, match="bytes wait in .*nothing is lost"):
        writer.flush(10.0)
    writer.stop(60)
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


def test_spool_of_an_earlier_driver_is_applied_first(tmp_path):
    filled(tmp_path / "spool-1.jsonl", 1, 2).close()
    sink = Sink()
    writer = writer_for([Spool(tmp_path / "spool-1.jsonl"), Spool(tmp_path / "spool-2.jsonl")], sink)
    writer.write(numbered(3)[0])
    writer.flush(60)
    writer.stop(60)
    assert sink.taken == numbered(1, 2, 3)
    assert list(tmp_path.iterdir()) == []


def test_ledger_gets_everything_in_order_after_an_outage(tmp_path):
    sink = Sink(failures=7)
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], sink)
    for operation in numbered(*range(50)):
        writer.write(operation)
    writer.flush(60)
    writer.stop(60)
    assert sink.taken == numbered(*range(50))


def test_flush_reports_pending_bytes_and_loses_nothing_in_an_outage(tmp_path):
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], Sink(failures=10**9))
    writer.write(numbered(1)[0])
    with pytest.raises(LedgerUnreachable, match=r"within 0.05 s.*bytes wait in .*run the same command again"):
        writer.flush(0.05)
    writer.stop(60)
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


def test_overtaken_driver_writes_no_more(tmp_path):
    sink = Sink()
    held = threading.Event()
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], sink, held=held.is_set)
    writer.write(numbered(1)[0])
    with pytest.raises(StudyBusy):
        writer.flush(60)
    writer.stop(60)
    assert sink.taken == []


class SlowLedger:
    """A writer that delivers a spool, with a clock that advances by `seconds` with each operation.

    Until `unblocked` is set, each delivery waits until the flushing thread has looked at that clock.
    """

    def __init__(self, path, monkeypatch, *, num_operations, seconds):
        monkeypatch.setattr(writer, "time", self)
        self.now = 0.0
        self.chunks = []
        self.unblocked = threading.Event()
        self._seconds = seconds
        self._looked = threading.Event()
        spool = Spool(path)
        for operation in numbered(*range(num_operations)):
            spool.append({**operation, "text": "x" * 1000})
        self.writer = Writer([spool], self._apply, held=self._look, surely_held=lambda: True, where="the ledger")

    def monotonic(self):
        return self.now

    def _look(self):
        self._looked.set()
        return True

    def _apply(self, operations):
        self.now += self._seconds * len(operations)
        self.chunks.append(len(operations))
        self._looked.clear()
        while not (self.unblocked.is_set() or self._looked.wait(0.01)):
            pass


@pytest.fixture
def slow_ledger(tmp_path, monkeypatch):
    return partial(SlowLedger, tmp_path / "spool.jsonl", monkeypatch)


def test_flush_waits_for_a_slow_ledger_while_it_makes_progress(slow_ledger):
    slow = slow_ledger(num_operations=150, seconds=1.5)
    slow.writer.flush(60)
    slow.writer.stop(60)
    assert sum(slow.chunks) == 150
    assert slow.now > 3 * 60


def test_brief_flush_of_a_slow_ledger_keeps_the_rest_in_the_spool(slow_ledger, tmp_path):
    slow = slow_ledger(num_operations=150, seconds=1.5)
    with pytest.raises(LedgerUnreachable, match="within 60 s: .*bytes wait in"):
        slow.writer.flush(60, brief=True)
    slow.writer._stopping = True
    slow.unblocked.set()
    slow.writer.stop(60)
    assert len(drained(Spool(tmp_path / "spool.jsonl"))) == 150 - sum(slow.chunks) > 0


def test_fast_ledger_gets_large_chunks(slow_ledger):
    fast = slow_ledger(num_operations=3000, seconds=0.0001)
    fast.unblocked.set()
    fast.writer.flush(60)
    fast.writer.stop(60)
    assert sum(fast.chunks) == 3000
    assert max(fast.chunks) > 900
