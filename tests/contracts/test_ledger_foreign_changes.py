"""What other people and other versions changed in a ledger is refused, or holds nothing else up."""

import dataclasses
import json

import pytest

from benchmarks.faults.harness.settings import IDENTITY
from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.study.session import Session
from tests.contracts.conftest import PATIENCE, STUDY, client_of, points, record, runs_of, trial


@pytest.mark.parametrize(
    ("where", "name", "value", "read"),
    [
        ("tags", "muxfer.schema", "new", lambda reader: reader.studies()),
        ("tags", "muxfer.study", None, lambda reader: reader.studies()),
        ("tags", "muxfer.study", "../../outside", lambda reader: reader.studies()),
        ("tags", "muxfer.identity.0", "{}", lambda reader: reader.studies()),
        ("tags", "muxfer.identity.0", '{"a":' * 900 + "1" + "}" * 900, lambda reader: reader.studies()),
        ("tags", "muxfer.config.0", "[]", lambda reader: reader.config(STUDY)),
        ("tags", "muxfer.config.parts", "2", lambda reader: reader.config(STUDY)),
        ("tags", "muxfer.record.e1", "{}", lambda reader: reader.records(STUDY)),
        ("tags", "muxfer.record.e1", '{"step": "x"}', lambda reader: reader.standings(STUDY)),
        ("params", "lease.e1", "5", lambda reader: reader.driver(STUDY)),
        ("params", "lease.e1", '{"pid": []}', lambda reader: reader.driver(STUDY)),
    ],
)
def test_tags_and_params_of_others_are_bad_input(config, tmp_path, where, name, value, read):
    import sqlite3

    if not config.tracking_uri.startswith("sqlite"):
        pytest.skip("the database is a server's")
    ledger = MlflowLedger(config, folder=tmp_path)
    study = dataclasses.replace(STUDY, identity=IDENTITY)
    lease = ledger.acquire(study)
    ledger.open(study, {}, lease)
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    lease.release()
    ledger.close()
    with sqlite3.connect(config.tracking_uri.removeprefix("sqlite:///")) as database:
        written = database.execute(f"select value from {where} where key = ?", (name,)).fetchone()[0]
        if value is not None and value.startswith('{"step'):
            value = json.dumps(json.loads(written) | json.loads(value))
        change = f"update {where} set value = ? where key = ?", (value, name)
        if value is None:
            change = "delete from tags where key = ?", (name,)
        assert database.execute(*change).rowcount
    with pytest.raises(BadInput, match="^[^\n]+ was not written by muxfer.*: .*delete"):
        read(MlflowLedger(config, folder=tmp_path))


def test_deleted_run_does_not_hold_up_other_trials(drive, caplog):
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


def test_missing_record_of_a_trained_trial_is_reported(drive):
    ledger, lease = drive()
    for number in (0, 1):
        ledger.begin(trial(number))
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger, 1)
    client_of(ledger).delete_run(run.info.run_id)
    ran = [record(number, epoch=lease.epoch) for number in (0, 1)]
    earlier = dataclasses.replace(ran[0], epoch=lease.epoch - 1)
    for one in ran:
        ledger.settle(one)
    ledger.flush(PATIENCE)
    session = Session(request=None, study=STUDY, ledger=ledger, lease=lease)
    session._assert_recorded(ran[:1])
    with pytest.raises(LedgerUnreachable, match=r"the first: key0"):
        session._assert_recorded([earlier])
    with pytest.raises(LedgerUnreachable, match=r"does not hold the records of 1 trials .*\(the first: key1\)"):
        session._assert_recorded(ran)


def test_deleted_experiment_is_refused_with_a_remedy(drive, config):
    ledger, _ = drive()
    experiment = client_of(ledger).get_experiment_by_name(config.experiment)
    client_of(ledger).delete_experiment(experiment.experiment_id)
    with pytest.raises(BadInput, match=r"was deleted .*experiments restore -x .*ledger.experiment=NAME"):
        ledger.records(STUDY)
    client_of(ledger).restore_experiment(experiment.experiment_id)


def test_newer_ledger_is_refused(drive):
    ledger, _ = drive()
    [parent] = ledger._read({"muxfer.kind": "study"})
    ledger._store.log(parent.info.run_id, tags={"muxfer.schema": "99"})
    for read in (lambda: ledger.records(STUDY), lambda: ledger.studies("lr-width")):
        with pytest.raises(BadInput, match=r"newer muxfer .*99.*upgrade"):
            read()
