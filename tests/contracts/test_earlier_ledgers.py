"""Ledgers of every earlier version of muxfer read as they were written, and one of a newer version is refused."""

import json

import pytest

from benchmarks.faults.harness.promise import results
from benchmarks.faults.inputs.earlier_ledgers import (
    LEARNED,
    OVERRIDES,
    check_numerics,
    content,
    make_newer,
    names,
    restore,
    said_of,
)
from muxfer.commands import retry, verdict
from muxfer.commands import sweep as commands
from muxfer.commands.status import status
from muxfer.config.study import LedgerConfig
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.study.resolve import resolve
from muxfer.study.rounds import proposing


@pytest.fixture(params=names())
def earlier(request, tmp_path, monkeypatch):
    """(the results that the version reported, its ledger, the overrides that name its study)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = restore(request.param, tmp_path)
    config = LedgerConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    return said, MlflowLedger(config, folder=tmp_path / "muxfer"), OVERRIDES


def test_every_earlier_version_has_a_ledger():
    assert len(names()) >= 3


def test_records_and_curves_of_earlier_versions_read_as_written(earlier):
    said, ledger, _ = earlier
    [study] = ledger.studies("lr-width")
    assert study.key == said["sweep"]["study"]
    records = {record.key: record for record in ledger.records(study)}
    proxies = {key: [str(r.outcome), r.metric, r.step] for key, r in records.items() if r.kind == "proxy"}
    assert proxies == results(said["sweep"])
    [target] = [record for record in records.values() if record.kind == "target"]
    assert (target.metric, target.run_id) == (said["transfer"]["metric"], said["transfer"]["run_id"])
    curves = ledger.curves(study, "train_loss")
    assert curves.keys() == records.keys()
    assert all(curve[-1].step <= records[key].step for key, curve in curves.items())


def test_sweep_skips_and_verdict_reads_trials_of_earlier_versions(earlier):
    said, _, overrides = earlier
    answer = commands.sweep("lr-width", overrides, print_line=print)
    assert answer.exit_code == 0
    assert (answer.data["ran"], answer.data["skipped"]) == (0, len(said["sweep"]["trials"]))
    assert results(answer.data) == results(said["sweep"])
    assert answer.data["best"] == said["sweep"]["best"]
    judged = json.loads(json.dumps(verdict.verdict("lr-width", overrides).data))
    assert judged == answer.data["verdict"]


def test_study_of_earlier_numerics_is_judged_but_not_continued(earlier, monkeypatch):
    said, _, overrides = earlier
    before = verdict.verdict("lr-width", overrides).data
    (stood,) = status("lr-width", [], print_line=print).data["studies"]
    monkeypatch.setattr("muxfer.study.trials.NUMERICS_VERSION", 2)
    monkeypatch.setattr("muxfer.commands.retry.NUMERICS_VERSION", 2)
    asked = resolve("lr-width", overrides)
    assert asked.study.key != said["sweep"]["study"]
    assert verdict.verdict("lr-width", overrides).data == before
    assert status("lr-width", [], print_line=print).data["studies"] == [stood]
    with pytest.raises(BadInput, match="trained with numerics 1, this version has 2"):
        retry.retry("lr-width", overrides, print_line=print)


@pytest.mark.parametrize("command", ["verdict", "report", "sweep"])
def test_ledger_of_a_newer_version_is_refused_and_unchanged(earlier, command, tmp_path):
    _, _, overrides = earlier
    make_newer(tmp_path / "mlflow.db")
    before = content(tmp_path / "mlflow.db")
    print_line = {"say": print} if command == "sweep" else {}
    with pytest.raises(BadInput, match="written by a newer muxfer .* upgrade muxfer"):
        getattr(commands, command)("lr-width", overrides, **print_line)
    assert content(tmp_path / "mlflow.db") == before


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """The results of the recorded study's narrow trials with today's code, by key."""
    asked = resolve("lr-width", OVERRIDES)
    trials = proposing(asked.config, fingerprint=asked.fingerprint)([])
    narrow = [trial for trial in trials if trial.setting["width"] == 16]
    executor = InlineExecutor()
    folder = tmp_path_factory.mktemp("today")
    executor.submit([TrialJob(trial=trial, folder=str(folder / trial.key), epoch=1) for trial in narrow])
    found = {}
    while len(found) < len(narrow):
        for report in executor.updates(60):
            if report.record is not None:
                found[report.key] = [str(report.record.outcome), report.record.metric, report.record.step]
    return found


@pytest.mark.parametrize("name", names())
def test_trials_train_to_the_numbers_recorded_under_their_keys(name, today):
    """If they differ, NUMERICS_VERSION must go up. Else a sweep would mix two numerics under the same keys."""
    recorded = results(said_of(name)["sweep"])
    assert today.keys() <= recorded.keys()
    check_numerics(recorded, today, name)
    key = min(key for key, (_, metric, _) in today.items() if metric is not None and metric < LEARNED)
    with pytest.raises(AssertionError, match=f"trial {key} of {name} .* under the same key"):
        check_numerics(recorded, {**today, key: ["finished", 1.01 * today[key][1], today[key][2]]}, name)
