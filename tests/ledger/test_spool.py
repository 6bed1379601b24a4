"""The spool and its writer: what is written once arrives in order, through crashes, full disks and outages."""

import os
import resource
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from muxfer.errors import BadInput, LedgerUnreachable, StudyBusy
from muxfer.ledger import writer
from muxfer.ledger.spool import Spool
from muxfer.ledger.writer import Writer


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(writer, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(writer, "BACKOFF_SECONDS", (0.001, 0.01))


def numbered(*numbers):
    return [{"op": "points", "n": number} for number in numbers]


def drained(spool):
    found = []
    while spool.pending_bytes:
        operations, offset = spool.read()
        found += operations
        spool.acknowledge(offset)
    return found


class Sink:
    """A ledger that refuses the first few times it is asked."""

    def __init__(self, failures=0):
        self.failures = failures
        self.taken = []

    def __call__(self, operations):
        if self.failures:
            self.failures -= 1
            raise LedgerUnreachable("away")
        self.taken += operations


def writer_for(spools, sink, held=lambda: True):
    return Writer(spools, sink, held=held, where="the ledger")


def test_a_spool_gives_back_in_order_and_leaves_nothing(tmp_path):
    spool = Spool(tmp_path / "s" / "spool.jsonl")
    assert not spool.path.parent.exists()
    for operation in numbered(*range(5)):
        spool.append(operation)
    assert drained(spool) == numbered(*range(5))
    assert list(spool.path.parent.iterdir()) == []
    spool.append(numbered(9)[0])
    assert drained(spool) == numbered(9)


def test_a_spool_is_read_in_chunks_and_goes_on_after_the_acknowledged_one(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    for operation in numbered(*range(20)):
        spool.append(operation)
    first, offset = spool.read(60)
    assert 0 < len(first) < 20
    spool.acknowledge(offset)
    spool.close()
    assert first + drained(Spool(tmp_path / "spool.jsonl")) == numbered(*range(20))


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_line_torn_by_a_crash_is_dropped_and_written_over(tmp_path, cut):
    path = tmp_path / "spool.jsonl"
    spool = Spool(path)
    for operation in numbered(1, 2):
        spool.append(operation)
    spool.close()
    line = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(path.read_bytes()[: -min(cut, len(line))])
    again = Spool(path)
    again.append(numbered(3)[0])
    assert drained(again) == numbered(1, 3)


def test_a_damaged_line_is_left_out_and_told(tmp_path, caplog):
    path = tmp_path / "spool.jsonl"
    path.write_text('{"n":1}\n{"n":\n{"n":3}\n')
    assert drained(Spool(path)) == [{"n": 1}, {"n": 3}]
    assert "damaged line" in caplog.text


def test_an_offset_without_its_file_hides_nothing(tmp_path):
    (tmp_path / "spool.offset").write_text("1000")
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append(numbered(1)[0])
    spool.close()
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


@pytest.mark.parametrize("offset", ["-5", "1000000", "9" * 5000, "x", "", "\u0663x", "1.5"])
def test_an_offset_that_cannot_be_hides_nothing(tmp_path, offset):
    (tmp_path / "spool.jsonl").write_text('{"n":1}\n{"n":2}\n')
    (tmp_path / "spool.offset").write_text(offset)
    assert drained(Spool(tmp_path / "spool.jsonl")) == [{"n": 1}, {"n": 2}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["jsonl", "offset", "tmp"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "victim")])
def test_what_is_no_file_in_the_place_of_a_spool_is_refused(tmp_path, make, end):
    (tmp_path / "victim").write_text("precious")
    make(tmp_path / f"spool.{end}")
    with pytest.raises(BadInput, match=rf"spool.{end} is no file .*move it away"):
        Spool(tmp_path / "spool.jsonl").append(numbered(1)[0])
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_never_reaches_the_spool(tmp_path, value):
    spool = Spool(tmp_path / "spool.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        spool.append({"value": value})
    assert spool.pending_bytes == 0


@contextmanager
def full_disk(limit_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_a_full_disk_does_not_take_is_kept_and_delivered(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    with full_disk(30):
        for operation in numbered(1, 2, 3):
            spool.append(operation)
        assert spool.path.read_bytes().endswith(b"\n")
        assert drained(spool) == numbered(1, 2, 3)
    spool.append(numbered(4)[0])
    assert drained(spool) == numbered(4)


def test_what_a_full_disk_did_not_take_goes_there_once_it_has_room_though_the_ledger_is_away(tmp_path):
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], Sink(failures=10**9))
    with full_disk(0):
        writer.write(numbered(1)[0])
        with pytest.raises(LedgerUnreachable, match="can't take them either, but the checkpoints hold them: free some"):
            writer.flush(1.0)
    with pytest.raises(LedgerUnreachable, match="bytes wait in .*nothing is lost"):
        writer.flush(10.0)
    writer.stop(60)
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


def test_an_earlier_drivers_spool_comes_before_ours(tmp_path):
    earlier = Spool(tmp_path / "spool-1.jsonl")
    for operation in numbered(1, 2):
        earlier.append(operation)
    earlier.close()
    sink = Sink()
    writer = writer_for([Spool(tmp_path / "spool-1.jsonl"), Spool(tmp_path / "spool-2.jsonl")], sink)
    writer.write(numbered(3)[0])
    writer.flush(60)
    writer.stop(60)
    assert sink.taken == numbered(1, 2, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_comes_back_gets_everything_in_order(tmp_path):
    sink = Sink(failures=7)
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], sink)
    for operation in numbered(*range(50)):
        writer.write(operation)
    writer.flush(60)
    writer.stop(60)
    assert sink.taken == numbered(*range(50))


def test_a_ledger_that_stays_away_is_told_with_what_waits_and_nothing_is_lost(tmp_path):
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], Sink(failures=10**9))
    writer.write(numbered(1)[0])
    with pytest.raises(LedgerUnreachable, match=r"within 0.05 s.*bytes wait in .*run the same command again"):
        writer.flush(0.05)
    writer.stop(60)
    assert drained(Spool(tmp_path / "spool.jsonl")) == numbered(1)


def test_a_driver_that_was_taken_over_writes_no_more(tmp_path):
    sink = Sink()
    held = threading.Event()
    writer = writer_for([Spool(tmp_path / "spool.jsonl")], sink, held=held.is_set)
    writer.write(numbered(1)[0])
    with pytest.raises(StudyBusy):
        writer.flush(60)
    writer.stop(60)
    assert sink.taken == []


class Laden:
    """A writer with a spool to deliver, by a clock that goes on with each operation, so many seconds.

    Until `left` is set whoever flushes looks at that clock before the ledger answers.
    """

    def __init__(self, path, monkeypatch, *, num_operations, seconds):
        monkeypatch.setattr(writer, "time", self)
        self.now = 0.0
        self.chunks = []
        self.left = threading.Event()
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
        while not (self.left.is_set() or self._looked.wait(0.01)):
            pass


@pytest.fixture
def laden(tmp_path, monkeypatch):
    return partial(Laden, tmp_path / "spool.jsonl", monkeypatch)


def test_a_ledger_that_is_slow_is_waited_for_as_long_as_it_takes_something(laden):
    slow = laden(num_operations=150, seconds=1.5)
    slow.writer.flush(60)
    slow.writer.stop(60)
    assert sum(slow.chunks) == 150
    assert slow.now > 3 * 60


def test_who_has_little_time_leaves_a_slow_ledger_the_rest(laden, tmp_path):
    slow = laden(num_operations=150, seconds=1.5)
    with pytest.raises(LedgerUnreachable, match="within 60 s: .*bytes wait in"):
        slow.writer.flush(60, brief=True)
    slow.writer._stopping = True
    slow.left.set()
    slow.writer.stop(60)
    assert len(drained(Spool(tmp_path / "spool.jsonl"))) == 150 - sum(slow.chunks) > 0


def test_a_quick_ledger_gets_much_at_a_time(laden):
    quick = laden(num_operations=3000, seconds=0.0001)
    quick.left.set()
    quick.writer.flush(60)
    quick.writer.stop(60)
    assert sum(quick.chunks) == 3000
    assert max(quick.chunks) > 900
