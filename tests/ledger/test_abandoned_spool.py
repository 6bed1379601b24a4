"""A spool whose file another driver removed stops neither its own driver nor the next one."""

from muxfer.ledger.spool import Spool
from muxfer.ledger.writer import Writer
from tests.contracts.conftest import PATIENCE


def test_fenced_driver_leaves_no_spool(tmp_path):
    """The driver that took over has applied and removed the spool, or has never seen it."""
    for removed_by_other in (True, False):
        spool = Spool(tmp_path / "spool-1.jsonl")
        for number in range(3):
            spool.append({"op": "points", "number": number})
        spool.sync()
        if removed_by_other:
            other = Spool(tmp_path / "spool-1.jsonl")
            other.acknowledge(other.read()[1])
            spool.acknowledge(spool.appended // 3)
        writer = Writer(
            [spool], lambda operations: None, held=lambda: False, surely_held=lambda: False, where="nowhere"
        )
        writer.write({"op": "points", "number": 3})
        writer.stop(10, fenced=True)
        assert list(tmp_path.iterdir()) == []


def test_spool_removed_by_its_woken_driver_is_skipped(tmp_path):
    theirs, ours = (Spool(tmp_path / f"spool-{number}.jsonl") for number in (1, 2))
    theirs.append({"op": "points", "number": 1})
    theirs.sync()
    (tmp_path / "spool-1.jsonl").unlink()
    applied = []
    writer = Writer([theirs, ours], applied.extend, held=lambda: True, surely_held=lambda: True, where="nowhere")
    writer.write({"op": "points", "number": 2})
    writer.flush(PATIENCE)
    writer.stop(10)
    assert applied == [{"op": "points", "number": 2}]
    assert list(tmp_path.iterdir()) == []
