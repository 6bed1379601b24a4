"""No secret of a configuration, a task or an error reaches the ledger."""

import dataclasses

import pytest

from muxfer.errors import BadInput
from muxfer.ledger.mlflow_tags import ERROR_CHARACTERS
from muxfer.trial import Outcome
from tests.contracts.conftest import PATIENCE, STUDY, artifacts, record, trial


def test_configuration_reads_back_without_secrets_and_is_replaced_by_a_shorter_one(drive):
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


def test_uri_in_a_configuration_is_recorded_without_its_password(drive):
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


SECRET = "wJalrXUtnFEMI"
WORDS = ("begin", "settle", "text", "proxy", "target", "failed", "finished", "cafe", "key0", "muxfer", "config.json")


def test_secrets_are_redacted_but_muxfers_own_words_are_not(drive, monkeypatch):
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
