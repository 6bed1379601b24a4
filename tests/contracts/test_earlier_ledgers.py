"""Ledgers of every earlier version of muxfer read as they were written, and one of a newer version is refused."""

import json
from functools import partial

import pytest

from benchmarks.faults.harness.promise import results
from benchmarks.faults.inputs.earlier_ledgers import (
    LEARNED,
    OVERRIDES,
    assert_same_numerics,
    content,
    make_newer,
    names,
    recorded_results,
    restore,
)
from muxfer.commands import report, retry, sweep, verdict
from muxfer.commands.status import status
from muxfer.config.study import LedgerConfig
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.study.resolve import resolve
from muxfer.study.rounds import proposing


@pytest.fixture(params=names())
def earlier(request, empty_folder):
    """(the results that the version reported, its ledger, the overrides that name its study)."""
    reported = restore(request.param, empty_folder)
    config = LedgerConfig(tracking_uri=f"sqlite:///{empty_folder}/mlflow.db")
    return reported, MlflowLedger(config, folder=empty_folder / "muxfer"), OVERRIDES


def test_every_earlier_version_has_a_ledger():
    assert len(names()) >= 3


def test_records_and_curves_of_earlier_versions_read_as_written(earlier):
    reported, ledger, _ = earlier
    [study] = ledger.studies("lr-width")
    assert study.key == reported["sweep"]["study"]
    records = {record.key: record for record in ledger.records(study)}
    proxies = {key: [str(r.outcome), r.metric, r.step] for key, r in records.items() if r.kind == "proxy"}
    assert proxies == results(reported["sweep"])
    [target] = [record for record in records.values() if record.kind == "target"]
    assert (target.metric, target.run_id) == (reported["transfer"]["metric"], reported["transfer"]["run_id"])
    curves = ledger.curves(study, "train_loss")
    assert curves.keys() == records.keys()
    assert all(curve[-1].step <= records[key].step for key, curve in curves.items())


@pytest.mark.slow
def test_sweep_skips_and_verdict_reads_trials_of_earlier_versions(earlier):
    reported, _, overrides = earlier
    result = sweep.sweep("lr-width", overrides, print_line=print)
    assert result.exit_code == 0
    assert (result.data["ran"], result.data["skipped"]) == (0, len(reported["sweep"]["trials"]))
    assert results(result.data) == results(reported["sweep"])
    assert result.data["best"] == reported["sweep"]["best"]
    judged = json.loads(json.dumps(verdict.verdict("lr-width", overrides).data))
    assert judged == result.data["verdict"]


def test_study_of_earlier_numerics_is_judged_but_not_continued(earlier, monkeypatch):
    reported, _, overrides = earlier
    before = verdict.verdict("lr-width", overrides).data
    (standing,) = status("lr-width", [], print_line=print).data["studies"]
    monkeypatch.setattr("muxfer.study.trials.NUMERICS_VERSION", 2)
    monkeypatch.setattr("muxfer.commands.retry.NUMERICS_VERSION", 2)
    request = resolve("lr-width", overrides)
    assert request.study.key != reported["sweep"]["study"]
    assert verdict.verdict("lr-width", overrides).data == before
    assert status("lr-width", [], print_line=print).data["studies"] == [standing]
    with pytest.raises(BadInput, match="trained with numerics 1, this version has 2"):
        retry.retry("lr-width", overrides, print_line=print)


@pytest.mark.parametrize("command", [verdict.verdict, report.report, partial(sweep.sweep, print_line=print)])
def test_ledger_of_a_newer_version_is_refused_and_unchanged(earlier, command, tmp_path):
    _, _, overrides = earlier
    make_newer(tmp_path / "mlflow.db")
    before = content(tmp_path / "mlflow.db")
    with pytest.raises(BadInput, match="written by a newer muxfer .* upgrade muxfer"):
        command("lr-width", overrides)
    assert content(tmp_path / "mlflow.db") == before


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """The results of the recorded study's narrow trials with today's code, by key."""
    request = resolve("lr-width", OVERRIDES)
    trials = proposing(request.config, fingerprint=request.fingerprint)([])
    narrow = [trial for trial in trials if trial.setting["width"] == 16]
    executor = InlineExecutor()
    folder = tmp_path_factory.mktemp("today")
    executor.submit([TrialJob(trial=trial, folder=str(folder / trial.key), epoch=1) for trial in narrow])
    results = {}
    while len(results) < len(narrow):
        for update in executor.updates(60):
            if (ended := update.record) is not None:
                results[update.key] = [str(ended.outcome), ended.metric, ended.step]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_trials_train_to_the_numbers_recorded_under_their_keys(name, today):
    """If they differ, NUMERICS_VERSION must go up. Else a sweep would mix two numerics under the same keys."""
    recorded = results(recorded_results(name)["sweep"])
    assert today.keys() <= recorded.keys()
    assert_same_numerics(recorded, today, name)
    key = min(key for key, (_, metric, _) in today.items() if metric is not None and metric < LEARNED)
    with pytest.raises(AssertionError, match=f"trial {key} ended as .* in {name} and as .* today"):
        assert_same_numerics(recorded, {**today, key: ["finished", 1.01 * today[key][1], today[key][2]]}, name)
