"""A spool that a killed driver left is replayed, and a file is attached only from the study's own folder."""

import json
import shutil
from pathlib import Path

import pytest

from muxfer.errors import LedgerUnreachable
from muxfer.ledger.mlflow_client import Refused
from muxfer.ledger.mlflow_ledger import MlflowLedger
from tests.contracts.conftest import PATIENCE, STUDY, artifacts, curve, own_file, points, record, runs_of, trial

STRANGE = (
    b"""{"op":"points","key":"key0"}
{"op":"unknown"}
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
"""Lines that no version of muxfer writes."""


def test_spool_of_a_killed_driver_is_replayed_before_records_are_read(drive, tmp_path):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("no answer"))
    ledger.begin(trial())
    ledger.report("key0", points(1, 2, 3))
    ledger.settle(record(epoch=lease.epoch))
    with pytest.raises(LedgerUnreachable, match="no answer"):
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
def test_spool_cannot_send_a_file_from_outside_the_study(drive, tmp_path, links, caplog):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("no answer"))
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


def test_spooled_file_is_found_after_the_study_folder_moved(drive, config, tmp_path):
    ledger, lease = drive()
    ledger._writer._apply = lambda operations: (_ for _ in ()).throw(LedgerUnreachable("no answer"))
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


def test_full_artifact_store_costs_neither_claim_nor_params_nor_record(drive, monkeypatch, caplog):
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


def test_failed_upload_does_not_hold_up_records(drive, config, tmp_path, caplog):
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
    assert "artifact was not taken" in caplog.text or "is missing" in caplog.text
