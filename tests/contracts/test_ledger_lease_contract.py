"""A study has one driver at a time, even where a race made two lease runs."""

import dataclasses

import pytest

from muxfer.errors import StudyBusy
from muxfer.ledger.holder import Holder
from muxfer.ledger.mlflow_lease import LeaseRuns
from muxfer.ledger.mlflow_ledger import MlflowLedger
from tests.contracts.conftest import STUDY


def test_one_driver_wins_though_a_race_made_two_lease_runs(drive, config):
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


def test_drivers_of_two_ledgers_never_share_a_folder(drive, config, tmp_path):
    _, lease = drive()
    other = MlflowLedger(
        dataclasses.replace(config, experiment=f"{config.experiment}.other"), folder=tmp_path / "muxfer"
    )
    with pytest.raises(StudyBusy, match=f"another ledger, .*, experiment {config.experiment}: wait until it has ended"):
        other.acquire(STUDY)
    assert other.driver(STUDY) is None, "it gave its own lease back"
    lease.release()
    other.acquire(STUDY).release()
