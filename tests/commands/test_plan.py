"""`muxfer plan` counts FLOPs, takes hours only from measurements, and proposes studies that keep a budget."""

import shlex
from dataclasses import replace

import pytest
from click.testing import CliRunner

from muxfer.cli import main
from muxfer.commands.plan import plan
from muxfer.executors.inline import InlineExecutor
from muxfer.study.resolve import resolve
from muxfer.study.session import drive
from muxfer.study.trials import grid_trials
from muxfer.trial import Outcome
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("empty_folder")
TINY = ["model.base_width=16", "model.depth=1", "search.width=[16]", "training.batch_size=8", "evaluation.timesteps=1"]
TINY += ["training.steps=4", "training.warmup_steps=0", "search.base_lr=[2**-6]"]


def train(*overrides):
    """Train the first trial in this process with a real ledger, and return its record. A failed trial is added."""
    resolved = resolve("lr-width", overrides)
    with drive(resolved) as session:
        [trial] = grid_trials(resolved.config, fingerprint=resolved.fingerprint)
        [record] = session.run([trial], start_executor=InlineExecutor).records
        session.ledger.begin(replace(trial, key="failed"))
        session.ledger.settle(replace(record, key="failed", outcome=Outcome.FAILED, metric=None, train_seconds=1e6))
    return record


def test_the_papers_parameter_count_is_used_only_for_its_own_models():
    other = plan("pixart-lr", ["scale=paper", "target.width=2304"]).data
    assert other["tuning_ratio"] == other["tuning_ratio_counted"]
    assert other["tuning_ratio"] < 0.02


def test_flops_are_counted_and_summed_over_trials():
    result = plan("lr-width", [*TINY, "search.width=[16,32]", "search.seeds=3"]).data
    first, second = result["sizes"]
    assert first["flops"] == 6 * first["macs"] * 4 * 8
    assert (first["trials"], second["trials"]) == (3, 3)
    assert result["tuning_ratio_flops"] == pytest.approx(result["proxy_flops"] / result["target_flops"])


def test_hours_are_the_flops_over_the_throughput_in_the_ledger(empty_folder):
    assert plan("lr-width", TINY).data["hours"] is None
    assert list(empty_folder.iterdir()) == []
    record = train(*TINY)
    longer = [*TINY, "training.steps=400", "search.seeds=2", "search.base_lr=[2**-6,2**-5,2**-4]"]
    result = plan("lr-width", longer)
    assert result.data["hours"] == pytest.approx(record.train_seconds * 100 * 6 / 3600)
    assert "not measured" not in result.text
    wider = plan("lr-width", [*longer, "search.width=[16,256]"])
    assert wider.data["hours"] is None
    assert [size["hours"] is None for size in wider.data["sizes"]] == [False, True]
    assert "hours: not measured" in wider.text
    assert plan("pixart-lr", TINY).data["hours"] is None


@pytest.mark.parametrize(
    ("name", "overrides", "budget", "settings"),
    [
        ("lr-width", [], 0.2, 7),
        ("lr-batch", ["search.base_lr=[2**-8,2**-7,2**-6,2**-5,2**-4,2**-3,2**-2]"], 0.015, 5),
        ("lr-steps", ["training.batch_size=32", "search.output_multiplier=[1,2]"], 0.025, 8),
        ("mmdit-random", ["target.steps=8000"], 0.05, 24),
    ],
)
def test_a_proposal_keeps_the_budget_when_it_is_planned(name, overrides, budget, settings):
    overrides = [*overrides, "target.width=256"]
    row = plan(name, overrides, budget=budget).data["proposals"][0]
    words = shlex.split(row["command"])
    assert words[:3] == ["muxfer", "sweep", name]
    assert row["settings"] == settings
    planned = plan(name, words[3:]).data
    assert planned["tuning_ratio_flops"] == pytest.approx(row["ratio_flops"])
    assert planned["tuning_ratio_flops"] <= budget
    assert planned["trials"] == row["trials"]
    assert {size["parameters"] for size in planned["sizes"]} == {row["parameters"]}


@pytest.mark.parametrize(
    ("name", "budget", "message"),
    [
        ("lr-width", 1e-9, ("costs ", " % of the target; give --budget")),
        ("lr-width", 0.0, ("between 0 and 1",)),
        ("lr-width", float("nan"), ("between 0 and 1",)),
        ("isoflop", 0.1, ("search.flops",)),
    ],
)
def test_an_impossible_budget_is_refused_in_one_line(name, budget, message):
    with refused(*message):
        plan(name, [], budget=budget)


def test_the_help_has_an_example():
    printed = CliRunner().invoke(main, ["plan", "--help"]).output
    assert "muxfer plan lr-width" in printed
    assert "--budget" in printed
