"""Which rows of a user's table count: finished runs of one grid, each once."""

import pytest

from muxfer.commands.verdict_table import verdict
from muxfer.errors import BadInput
from tests.commands.drift_tables import quadratic, write
from tests.refusals import refused
from tests.typed import ROOT

CASES = ROOT / "tests" / "tables" / "runs"


def data(path, **more):
    return verdict(str(path), **{"axis": "width", "hp": "lr", "metric": "loss"} | more).data


def test_a_run_that_has_not_finished_is_left_out_and_counted():
    judged = data(CASES / "wandb_crashed.csv", metric="val/loss", log2_hp=True)
    assert judged["left_out"] == 2
    assert judged["rows"] == 36
    assert "left out what has not finished by column 'State': 1 crashed, 1 running" in judged["notes"]


@pytest.mark.parametrize(
    ("column", "finished", "other"),
    [("state", "COMPLETE", "PRUNED"), ("status", "FINISHED", "KILLED"), ("State", "finished", "failed")],
)
def test_the_states_of_optuna_mlflow_and_wandb_are_read(tmp_path, column, finished, other):
    rows = [(*row[:3], finished) for row in quadratic(noise=0.001)]
    once = data(write(tmp_path, rows, f"width,lr,loss,{column}"))
    lucky = (64, -6, 0.0001, other)
    judged = data(write(tmp_path, [*rows, lucky], f"width,lr,loss,{column}"))
    assert judged["left_out"] == 1
    assert judged["optimum"] == once["optimum"]


def test_a_column_of_states_that_says_something_else_is_no_column_of_states(tmp_path):
    rows = [(*row[:3], "NRW") for row in quadratic(noise=0.001)]
    assert data(write(tmp_path, rows, "width,lr,loss,state"))["left_out"] == 0


def test_a_parent_run_without_any_setting_is_left_out(tmp_path):
    rows = [row[:3] for row in quadratic(noise=0.001)]
    judged = data(write(tmp_path, [("", "", 0.5), *rows], "width,lr,loss"))
    assert judged["left_out"] == 1
    assert judged["optimum"] == data(write(tmp_path, rows, "width,lr,loss", name="alone.csv"))["optimum"]


def test_a_setting_that_varies_inside_a_cell_is_refused_by_name():
    with refused("bs", "D", "--where"):
        data(CASES / "steplaw_dense.csv", axis="N", log2_hp=True)


def test_where_chooses_the_rows_of_one_setting():
    judged = data(CASES / "steplaw_dense.csv", axis="N", log2_hp=True, where=["D=2e10", "bs=256"])
    assert judged["rows"] == 24
    assert judged["left_out"] == 0


def test_a_condition_that_no_row_meets_is_refused(tmp_path):
    path = write(tmp_path, [(*row[:3], 256) for row in quadratic()], "width,lr,loss,bs")
    with refused("no row where bs is 512"):
        data(path, where=["bs=512"])
    with refused("expected COL=VALUE"):
        data(path, where=["bs"])
    with refused("no column 'sb'"):
        data(path, where=["sb=256"])


def test_a_log_with_a_row_a_step_is_refused(tmp_path):
    rows = [(*row[:2], row[2] + 1 / step, step) for row in quadratic() for step in (10, 20, 30)]
    with refused("several rows a run, one a step: expected one row a run; keep each run's last row"):
        data(write(tmp_path, rows, "width,lr,loss,step"))


@pytest.mark.parametrize("column", ["seed", "config.seed", "run_id", "Name", "Runtime", "hostname"])
def test_columns_that_tell_runs_apart_are_no_settings(tmp_path, column):
    rows = quadratic(seeds=3, noise=0.001)
    assert data(write(tmp_path, rows, f"width,lr,loss,{column}"))["rows"] == len(rows)


def test_a_result_that_varies_inside_a_cell_is_no_setting(tmp_path):
    rows = [(*row[:3], row[2] * 1.5) for row in quadratic(seeds=3, noise=0.001)]
    assert data(write(tmp_path, rows, "width,lr,loss,train_loss"))["rows"] == len(rows)


def test_equal_rounded_metrics_are_three_runs_and_not_one():
    judged = data(CASES / "equal_replicates.csv")
    assert judged["duplicates"] == 0
    assert judged["optimum"]["64"]["grid"] == -6


def test_a_row_that_repeats_whole_is_one_run(tmp_path):
    rows = [(*row[:3], f"run-{number}") for number, row in enumerate(quadratic(noise=0.001))]
    twice = data(write(tmp_path, [*rows, *rows], "width,lr,loss,Name"))
    assert twice["duplicates"] == len(rows)
    rounded = [(width, hp, round(loss, 2), name) for width, hp, loss, name in rows]
    renamed = [(*row[:3], f"{row[3]}-again") for row in rounded]
    assert data(write(tmp_path, [*rounded, *renamed], "width,lr,loss,Name"))["duplicates"] == 0


def test_two_roundings_of_one_value_are_one_value_with_a_note(tmp_path):
    rows = [row[:3] for row in quadratic(noise=0.001)]
    rates = [(width, 0.00391 if width == 128 and hp == -8 else f"{2.0**hp:.4g}", loss) for width, hp, loss in rows]
    judged = data(write(tmp_path, rates, "width,lr,loss"), log2_hp=True)
    assert "taken for one value of lr: 0.003906 and 0.00391" in judged["notes"]
    for optimum in judged["optimum"].values():
        assert optimum["grid"] == pytest.approx(2**-10, rel=1e-3)


def test_rates_that_span_many_decades_stay_apart(tmp_path):
    rates = [1e-6, 1e-4, 1e-2, 1.0]
    rows = [(width, rate, 1 + abs(number - 2)) for width in (64, 128) for number, rate in enumerate(rates)]
    assert len(data(write(tmp_path, rows, "width,lr,loss"))["notes"]) == 1  # that it grows by a factor


def test_a_table_without_a_finished_run_is_refused(tmp_path):
    rows = [(*row[:3], "running") for row in quadratic()]
    with pytest.raises(BadInput, match="no row of a finished run: 24 running"):
        data(write(tmp_path, rows, "width,lr,loss,state"))
