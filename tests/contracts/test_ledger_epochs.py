"""Writes of an older epoch never count, whoever sends them and however late."""

import dataclasses
import json

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.holder import Holder
from muxfer.ledger.lease import acquire
from muxfer.ledger.mlflow_lease import LeaseRuns
from tests.contracts.conftest import PATIENCE, STUDY, points, record, runs_of, trial


def test_late_record_of_an_older_epoch_does_not_count(drive):
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
    # Even if the fenced driver does not look at the lease, its record carries its epoch.
    newer._store.log(known["key0"][0], tags={f"muxfer.record.e{lease.epoch}": json.dumps(late.to_dict())})
    assert newer.records(STUDY) == []
    newer.settle(record(epoch=newer_lease.epoch))
    newer.flush(PATIENCE)
    apply([operation])
    assert [(found.metric, found.epoch) for found in newer.records(STUDY)] == [(0.25, newer_lease.epoch)]


def test_late_points_of_an_older_epoch_do_not_count(drive):
    """They may come from a spool, or from a driver that was stopped and does not know yet that it was taken over."""
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.report("key0", points(1))
    ledger.flush(PATIENCE)
    apply = ledger._runs.apply
    lease.release()
    ledger.close()
    newer, newer_lease = drive()
    newer.begin(trial())
    newer.report("key0", points(1))
    newer.flush(PATIENCE)
    late = {"op": "points", "key": "key0", "points": [["train_loss", 1, 9.0], ["train_loss", 2, 9.0]]}
    newer._runs.apply([{**late, "epoch": lease.epoch}])
    apply([{**late, "epoch": lease.epoch}])
    assert newer.curves(STUDY, "train_loss") == {"key0": points(1)}
    newer._runs.apply([{**late, "points": [["train_loss", 2, 0.5]], "epoch": newer_lease.epoch}])
    assert [point.step for point in newer.curves(STUDY, "train_loss")["key0"]] == [1, 2]


def test_claim_without_a_lease_run_fails(drive, config, monkeypatch):
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


def test_claim_made_while_another_driver_reads_the_highest_epoch_is_seen(drive, config):
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
        acquire(leases, fresh.label, ttl_seconds=600, highest_epoch=others_claim_and_begin)
    assert leases.read().epoch == 1


def test_restored_ledger_continues_above_the_epochs_of_spools_and_attempts(drive, tmp_path):
    """Else the spool of its last driver would claim the trials with a higher epoch than the new driver's."""
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.flush(PATIENCE)
    lease.release()
    home = tmp_path / "muxfer" / STUDY.label
    spool = ledger._writer.spool.path.name.replace("-000001.", "-000004.")
    begun = {"op": "begin", "key": "key0", "epoch": 4, "name": "a", "start_ms": 1, "tags": {}, "params": {}, "task": {}}
    (home / spool).write_text(json.dumps(begun) + "\n")
    # muxfer never writes an epoch of so many digits. If it counted, every later epoch would have to lie above it.
    (home / "spool-0123abcd-9999999999.jsonl").write_text("")
    newer, lease = drive()
    assert lease.epoch == 5
    newer.begin(trial())
    newer.settle(record(epoch=lease.epoch))
    newer.flush(PATIENCE)
    assert [found.epoch for found in newer.records(STUDY)] == [5]
    lease.release()
    (home / "trials" / "key0" / "attempt-0007-00").mkdir(parents=True)
    assert drive()[1].epoch == 8


def test_epochs_continue_from_the_trials_after_the_lease_was_deleted(drive, config):
    """`mlflow gc` deletes leases. If epochs began anew, readers would take a new driver's records for late ones."""
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


def test_late_status_of_a_stopped_driver_is_corrected(drive):
    """The driver looked at the lease, was stopped, and wrote after another driver had ended the trial."""
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    ledger._store.log(run.info.run_id, tags={"muxfer.claim.e0": "1", "muxfer.outcome": "running"})
    ledger._store.set_status(run.info.run_id, "RUNNING")
    ledger._runs._unverified[run.info.run_id] = 0
    unknown_trial = {"op": "settle", "key": "none", "epoch": 1, "end_ms": 1, "record": {}}
    ledger._runs.apply([unknown_trial])  # an operation that is refused changes nothing else
    [run] = runs_of(ledger)
    assert (run.info.status, run.data.tags["muxfer.outcome"]) == ("FINISHED", "finished")
    assert [found.epoch for found in ledger.records(STUDY)] == [lease.epoch]
