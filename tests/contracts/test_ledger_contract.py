"""What every ledger keeps: what was written is read back, once, whoever wrote it and whatever came in between."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.faults.bench import IDENTITY
from muxfer.config.study import LedgerConfig
from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.mlflow_client import Refused
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.mlflow_tags import ERROR_CHARACTERS
from muxfer.study.recorded import expect_taken
from muxfer.trial import Outcome
from tests.contracts.conftest import (
    PATIENCE,
    STUDY,
    artifacts,
    client_of,
    curve,
    own_file,
    points,
    record,
    runs_of,
    trial,
)


def test_what_is_written_is_read_back_by_another_driver(drive, config, tmp_path):
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


def test_a_uri_in_a_configuration_is_recorded_without_its_password(drive):
    ledger, lease = drive()
    ledger.open(STUDY, {"description": "see https://bob:hun/t@er22@wiki/x"}, lease)
    ledger.flush(PATIENCE)
    [parent] = ledger._read({"muxfer.kind": "study"})
    assert "er22" not in str(parent.data.tags)
    assert ledger.config(STUDY) == {"description": "see https://***@wiki/x"}
    by_name = {"model": {"arguments": {"url": "https://bob:${oc.env:UNSET_NAME,word}@hub"}}}
    ledger.open(STUDY, by_name, lease)
    assert ledger.config(STUDY) == {"model": {"arguments": {"url": "https://bob:word@hub"}}}
    with pytest.raises(
        BadInput, match=r"model.arguments.other=https://\*\*\*@hub holds a secret .* write \$\{oc.env:NAME"
    ):
        ledger.open(STUDY, {"model": {"arguments": {"other": "https://bob:hunter22@hub"}}}, lease)


def test_a_target_carries_its_lineage_and_its_files(drive, tmp_path):
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


SECRET = "wJalrXUtnFEMI"
WORDS = ("begin", "settle", "text", "proxy", "target", "failed", "finished", "cafe", "key0", "muxfer", "config.json")


def test_a_secret_is_masked_where_others_wrote_it_and_no_word_of_ours_is_however_secret_it_is(drive, monkeypatch):
    for number, word in enumerate((SECRET, *WORDS)):
        monkeypatch.setenv(f"TOKEN_{number}", word)
    ledger, lease = drive()
    apply, written = ledger._writer._apply, []
    ledger._writer._apply = lambda some: apply(written.extend(some) or some)
    key = "cafe0123cafe4567"
    task = {"model": {"arguments": {"path": f"s3://{SECRET}", "key": SECRET}}, "optimizer": {"name": SECRET}}
    lineage = {"source": SECRET, "plan": [SECRET]}
    ledger.begin(trial(key=key, task=task, lineage=lineage, setting={"width": 64}))
    failed = record(key=key, epoch=lease.epoch, outcome=Outcome.FAILED, metric=None, checkpoint="/target/step-1")
    ledger.settle(dataclasses.replace(failed, error="x" * (ERROR_CHARACTERS - 5) + SECRET))
    ledger.flush(PATIENCE)
    [found] = ledger.records(STUDY)
    assert (found.key, found.outcome, found.kind) == (key, Outcome.FAILED, "proxy")
    assert found.checkpoint == "/target/step-1"
    assert SECRET[:5] not in str(found.error)
    [run] = ledger._read({"muxfer.key": key})
    [parent] = ledger._read({"muxfer.kind": "study"})
    assert artifacts(ledger, parent) == {"config.json"}
    assert artifacts(ledger, run) == {"task.json"}
    assert SECRET not in f"{run.data.to_dictionary()} {run.info.run_name} {written}"
    assert run.data.tags["muxfer.lineage.plan"] == '["***"]'


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
        error = "\N{GRINNING FACE}" * 50_000 if outcome is Outcome.FAILED else None
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


def test_points_and_tags_of_any_number_arrive_together(drive):
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
    assert [found.run_id for found in ledger.records(STUDY)] == [ours.info.run_id]
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


def test_late_points_of_an_older_epoch_do_not_count(drive):
    """Neither out of a spool, nor from a driver that was stopped and does not know yet that it was taken over."""
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


STRANGE = (
    b"""{"op":"points","key":"key0"}
{"op":"unheard"}
[1]
null
{}
{"op":["points"],"key":"a","points":[]}
{"op":"points","key":"key0","points":5}
{"op":"points","key":"other","points":[5]}
{"op":"rest","key":"key0","epoch":1,"end_ms":1,"paused":[]}
{"op":"begin","key":"key0","epoch":"1","name":5,"start_ms":"x","tags":[],"params":5,"task":{}}
{"op":"begin","key":"key0","epoch":1,"name":"\\ud800","start_ms":1,"tags":{},"params":{},"task":{}}
{"op":"begin","key":"key0","epoch":1,"name":"a","start_ms":9223372036854775807,"tags":{},"params":{},"task":{}}
{"op":"begin","key":"x' or 1=1 --","epoch":1,"name":"a","start_ms":1,"tags":{},"params":{},"task":{}}
{"op":"points","key":"key0","epoch":"1","points":[["train_loss",1,9.0]]}
{"op":"points","key":"key0","points":[["train_loss",4,NaN],["train_loss",5,1e999]]}
{"op":"points","key":"key0","points":[["train_loss",9223372036854775807,0.5]]}
{"op":"points","key":"key0","points":[{"train_loss":1}]}
{"op":"settle","key":"key0","epoch":1,"end_ms":1,"record":{"outcome":"finished"}}
{"op":"rest","epoch":1,"end_ms":1,"paused":[["key0"]]}
{"op":"rest","epoch":1,"end_ms":1,"paused":5}
{"op":"file","key":["key0"],"path":"x"}
{"op":"file","key":null,"path":5}
{"op":"file","key":null,"path":"a\\u0000b"}
{"op":"text","key":null,"name":"../../x","text":"x"}
{"op":"duplicates","key":null}
"""
    + b'{"op":"begin","key":"key0","epoch":1,"name":"a","start_ms":1,"tags":{},"params":{},"task":%s}\n'
    % (b'{"a":' * 900 + b"5" + b"}" * 900)
)
"""Lines that no version of ours writes."""


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
    spool.write_bytes(STRANGE + spool.read_bytes() + b'{"op":"points","key":"ke')
    newer, _ = drive()
    assert [found.epoch for found in newer.records(STUDY)] == [lease.epoch]
    assert curve(newer, runs_of(newer)[0]) == [(1, 0.55), (2, 1.1 / 3), (3, 0.275)]
    assert not spool.exists()


@pytest.mark.parametrize("links", [False, True])
def test_no_spool_sends_a_file_from_outside_the_study(drive, tmp_path, links, caplog):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("away"))
    ledger.begin(trial())
    ledger.attach([own_file(tmp_path)])
    lease.release()
    ledger.close()
    home = tmp_path / "muxfer" / STUDY.label
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "id_rsa").write_text("private")
    (home / "link").symlink_to(tmp_path / "outside" / "id_rsa")
    (home / "folder").symlink_to(tmp_path / "outside")
    (home / "loop").symlink_to(home / "loop")
    outside = [str(home / "link"), "folder/id_rsa"] if links else [f"{tmp_path}/outside/id_rsa", "../../outside/id_rsa"]
    paths = [*outside, f"{home}/../../outside/id_rsa", "loop", "x" * 5000, "/etc", "."]
    lines = [{"op": "file", "key": key, "path": path, "epoch": 1} for path in paths for key in (None, "key0")]
    [spool] = home.glob("spool*.jsonl")
    spool.write_text(spool.read_text() + "".join(json.dumps(line) + "\n" for line in lines))
    newer, _ = drive()
    [parent] = newer._read({"muxfer.kind": "study"})
    assert artifacts(newer, parent) == {"config.json", "sample grid.png"}
    assert artifacts(newer, runs_of(newer)[0]) == {"task.json"}
    assert "lies outside" in caplog.text
    newer.attach([home / "link"])
    newer.flush(PATIENCE)
    assert artifacts(newer, parent) == {"config.json", "sample grid.png"}


def test_a_file_that_waits_in_a_spool_is_sent_from_where_the_study_lies_by_then(drive, config, tmp_path):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("away"))
    ledger.begin(trial())
    weights, page = own_file(tmp_path, "target-x/ema.safetensors"), own_file(tmp_path, "report.html")
    ledger.settle(record(epoch=lease.epoch), artifacts=[weights])
    ledger.attach([page])
    ledger.close()
    lease.before_release = None
    lease.release()
    (tmp_path / "muxfer").rename(tmp_path / "moved")
    newer = MlflowLedger(config, folder=tmp_path / "moved")
    lease = newer.acquire(STUDY)
    newer.open(STUDY, None, lease)
    [parent] = newer._read({"muxfer.kind": "study"})
    assert artifacts(newer, parent) == {"config.json", "report.html"}
    assert artifacts(newer, runs_of(newer)[0]) == {"task.json", "ema.safetensors"}
    lease.release()
    newer.close()


def test_where_artifacts_find_no_room_a_trial_keeps_its_claim_its_params_and_its_record(drive, monkeypatch, caplog):
    ledger, lease = drive()

    def full(*_):
        raise Refused("an artifact was not taken")

    monkeypatch.setattr(ledger._store, "upload_text", full)
    ledger.begin(trial())
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    [run] = runs_of(ledger)
    assert run.data.params["model.width"] == "64"
    assert run.data.tags[f"muxfer.claim.e{lease.epoch}"] == "1"
    assert [found.epoch for found in ledger.records(STUDY)] == [lease.epoch]
    assert "an artifact was not taken" in caplog.text


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
def test_what_others_wrote_there_is_bad_input(config, tmp_path, where, name, value, read):
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
    with pytest.raises(BadInput, match="^[^\n]+ is none of muxfer's.*: .*delete"):
        read(MlflowLedger(config, folder=tmp_path))


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


def test_what_was_trained_and_is_not_there_is_told(drive):
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
    expect_taken(ledger, STUDY, ran[:1])
    with pytest.raises(LedgerUnreachable, match=r"the first: key0"):
        expect_taken(ledger, STUDY, [earlier])
    with pytest.raises(LedgerUnreachable, match=r"does not hold the records of 1 trials .*\(the first: key1\)"):
        expect_taken(ledger, STUDY, ran)


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
    picture = own_file(tmp_path)
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


def test_curves_come_back_by_trial_as_they_were_written(drive):
    ledger, lease = drive()
    ledger.begin(trial())
    ledger.report("key0", points(3))
    ledger.report("key0", points(3))
    ledger.settle(record(epoch=lease.epoch))
    ledger.flush(PATIENCE)
    assert ledger.curves(STUDY, "train_loss") == {"key0": points(3)}
    assert ledger.curves(STUDY, "no_such_curve") == {"key0": []}
