"""The contract of every ledger: what a driver wrote is read back once, also after retries."""

import shutil

from muxfer.config.study import LedgerConfig
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.trial import Outcome
from tests.contracts.conftest import PATIENCE, STUDY, artifacts, curve, own_file, points, record, runs_of, trial


def test_another_driver_reads_back_what_was_written(drive, config, tmp_path):
    ledger, lease = drive()
    picture = own_file(tmp_path)
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


def test_target_run_has_its_lineage_and_files(drive, tmp_path):
    ledger, lease = drive()
    weights = own_file(tmp_path, "ema.safetensors")
    ledger.begin(trial(kind="target", lineage={"source": "lr-width", "plan_hash": "abc"}))
    ledger.settle(record(epoch=lease.epoch, kind="target"))
    ledger.attach([weights], key="key0")
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    assert run.info.run_name == "target width=64 base_lr=2^-7 seed 0"
    assert run.data.tags["muxfer.lineage.source"] == "lr-width"
    assert run.data.tags["muxfer.lineage.plan_hash"] == "abc"
    assert artifacts(ledger, run) == {"task.json", "ema.safetensors"}
    assert [found.kind for found in ledger.records(STUDY)] == ["target"]


def test_each_outcome_has_its_mlflow_status(drive):
    ledger, lease = drive()
    wanted = {Outcome.FINISHED: "FINISHED", Outcome.DIVERGED: "FINISHED", Outcome.FAILED: "FAILED"}
    for number, outcome in enumerate(wanted):
        ledger.begin(trial(number))
        metric = 0.5 if outcome is Outcome.FINISHED else None
        error = "\N{GRINNING FACE}" * 50_000 if outcome is Outcome.FAILED else None
        ledger.settle(record(number, epoch=lease.epoch, outcome=outcome, metric=metric, error=error))
    ledger.begin(trial(9))
    ledger.flush(PATIENCE)
    records = {found.key: found for found in ledger.records(STUDY)}
    assert {key: found.outcome for key, found in records.items()} == {f"key{n}": out for n, out in enumerate(wanted)}
    assert [runs_of(ledger, n)[0].info.status for n in range(len(wanted))] == list(wanted.values())
    assert runs_of(ledger, 9)[0].info.status == "RUNNING"
    lease.release()
    assert runs_of(ledger, 9)[0].info.status == "KILLED"


def test_applying_operations_twice_changes_nothing(drive):
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


def test_any_number_of_points_and_tags_is_written(drive):
    ledger, _ = drive()
    ledger.begin(trial())
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    for number, num_points in enumerate((0, 800, 801, 1000, 1001, 1801)):
        metrics = [(f"curve{number}", 0.5, step, step) for step in range(num_points)]
        tags = {f"label{number}.{each}": "x" for each in range(101)}
        ledger._store.log(run.info.run_id, metrics=metrics, tags=tags)
        assert len(curve(ledger, run, f"curve{number}")) == num_points
    [after] = runs_of(ledger)
    assert sum(name.startswith("label") for name in after.data.tags) == 6 * 101


def test_duplicate_runs_of_a_late_create_are_resolved_by_a_fixed_rule(drive):
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
    assert [found.run_id for found in ledger.records(STUDY)] == [ours.info.run_id]
    ledger.flush(PATIENCE)
    [left] = runs_of(ledger)
    assert left.info.run_id == ours.info.run_id
    ledger._store.create_run(ours.info.experiment_id, name="later still", start_ms=1, tags=tags)
    assert [found.run_id for found in ledger.records(STUDY)] == [ours.info.run_id]
    ledger.flush(PATIENCE)
    assert len(runs_of(ledger)) == 1


def test_driver_with_nothing_to_do_writes_nothing(drive, tmp_path):
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


def test_relative_database_path_is_resolved_once_and_artifacts_lie_beside_it(tmp_path, monkeypatch, fresh_database):
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


def test_curves_read_back_by_trial_as_written(drive):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.report("key0", points(3))
    ledger.report("key0", points(3))
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    assert ledger.curves(STUDY, "train_loss") == {"key0": points(3)}
    assert ledger.curves(STUDY, "no_such_curve") == {"key0": []}
