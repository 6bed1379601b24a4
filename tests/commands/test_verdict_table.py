"""`muxfer verdict --table`: the verdicts on the paper's tables, the meaning of each option, and what is refused."""

import json
import math
import re
import shlex

import pytest

from muxfer.commands.verdict_table import verdict
from tests.commands.drift_tables import LR, MULTIPLIER, SCORES, judged, quadratic, write
from tests.refusals import refused
from tests.typed import ROOT, muxfer

PAGE = ROOT / "docs" / "verdict.md"


@pytest.mark.parametrize("metric", SCORES)
def test_the_papers_learning_rate_transfers_from_the_smallest_width(metric):
    data = judged(LR, "log2_base_lr", metric, mode=SCORES[metric])
    assert data["verdict"] == "transfers"
    for key in ("grid", "stable"):
        assert {width: optimum[key] for width, optimum in data["optimum"].items()} == {
            "144": -10,
            "288": -10,
            "576": -10,
        }
    assert data["from"] == 144
    assert [regret["relative"] for regret in data["regret"]] == [0, 0]


@pytest.mark.parametrize("metric", SCORES)
def test_the_papers_output_multiplier_does_not_drift(metric):
    assert judged(MULTIPLIER, "log2_output_mult", metric, mode=SCORES[metric])["verdict"] != "drifts"


def test_the_command_prints_the_table_and_the_verdict_or_one_json_object():
    columns = ("--axis", "width", "--metric", "fid50k")
    done = muxfer(ROOT, "verdict", "--table", LR, *columns, "--hp", "log2_base_lr")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("fid50k")
    assert [line.split()[1:] for line in lines if line.startswith("-10 ")] == [["88.89*", "61.65*", "43.73*"]]
    assert any(line.startswith("verdict: transfers: ") for line in lines)
    assert "validation loss" not in done.stdout
    done = muxfer(ROOT, "verdict", "--table", MULTIPLIER, *columns, "--hp", "log2_output_mult", "--json")
    assert done.returncode == 6, done.stderr
    data = json.loads(done.stdout)
    assert data["verdict"] == "abstains"
    assert next(iter(data["optimum"]["576"])) == "grid"
    assert {"from", "to", "setting", "relative"} <= set(data["regret"][0])
    assert set(data["drift_per_doubling"]) >= {"value", "low", "high"}
    assert (data["rows"], data["duplicates"]) == (21, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "verdict needs the NAME of a sweep, or --table FILE.csv"),
        (("lr-width", "--table", LR), "exclude each other"),
        (("--table", LR, "--axis", "width"), "--table needs --hp COL, --metric COL as well"),
        (("lr-width", "--hp", "lr"), "--hp goes with --table FILE.csv alone"),
        (("lr-width", "--log2-hp"), "--log2-hp goes with --table FILE.csv alone"),
        (("--table", LR, "--axis", "widht", "--hp", "log2_base_lr", "--metric", "fid50k"), "did you mean 'width'?"),
        (("--table", "/none.csv", "--axis", "a", "--hp", "b", "--metric", "c"), "/none.csv does not exist"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message):
    done = muxfer(ROOT, "verdict", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line


REFUSED = {
    "a column named twice": ([(64, -3, 1)], {"hp": "width"}, "column 'width' is named twice"),
    "an empty setting": ([(64, -3, 1), (64, "", 1)], {}, "line 3: hp is empty"),
    "an infinite size": ([(64, -3, 1), ("inf", -2, 1)], {}, "line 3: width is inf"),
    "a size of 0": ([(64, -3, 1), (0, -2, 1)], {}, "line 3: width is 0, expected a size above 0"),
    "no log2": ([(64, 0.5, 1), (64, -3, 1)], {"log2_hp": True}, "line 3: hp is -3, which has no log2; leave --log2-hp"),
    "a number beyond all": ([(64, -3, 1), (64, -2, 1e300)], {}, "line 3: loss is 1e+300"),
    "no seed": ([(64, -3, 1, 0), (64, -2, 1, "")], {"seed": "seed"}, "line 3: seed is empty"),
    "two results of one seed": (
        [(64, -3, 1, 0), (64, -2, 1, 0), (64, -3, 2, 0)],
        {"seed": "seed"},
        "lines 2 and 4: the same width, hp and seed with loss 1 and 2; keep one of them",
    ),
    "a result and none of one seed": (
        [(64, -3, "", 0), (64, -3, 2, 0)],
        {"seed": "seed"},
        "lines 2 and 3: the same width, hp and seed with loss diverged and 2",
    ),
    "no grid": ([(64, i, 1) for i in range(2001)], {}, "2001 values of hp, more than 2000: expected a grid"),
    "no axis": ([(i + 1, 1, 1) for i in range(2001)], {}, "2001 values of width, more than 2000: expected a grid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_contradicts_itself_is_refused_in_one_line(tmp_path, case):
    rows, options, message = REFUSED[case]
    path = write(tmp_path, rows, "width,hp,loss,seed" if len(rows[0]) == 4 else "width,hp,loss")
    with refused(message) as caught:
        judged(path, **options)
    assert re.search("runs.csv|named twice", str(caught.value))


@pytest.mark.parametrize("metric", ["", "NaN", "inf", "-inf", "1e999"])
def test_a_metric_that_is_not_finite_counts_as_diverged(tmp_path, metric):
    rows = [(width, hp, metric if hp > -9 else loss) for width, hp, loss, _ in quadratic(noise=0.001)]
    data = judged(write(tmp_path, rows))
    assert data["verdict"] == "transfers"
    assert [optimum["diverges"] for optimum in data["optimum"].values()] == [-8, -8, -8]
    assert judged(write(tmp_path, [(*row[:2], "") for row in rows]))["verdict"] == "abstains"


def test_a_table_that_is_too_small_abstains(tmp_path):
    assert judged(write(tmp_path, [(64, -3, 1)]))["verdict"] == "abstains"
    assert judged(write(tmp_path, [(64, -3, ""), (128, -3, "")]))["verdict"] == "abstains"


def test_a_drift_is_found_for_min_and_for_max(tmp_path):
    rows = [row[:3] for row in quadratic(drift=1.0, noise=0.001)]
    low = judged(write(tmp_path, rows))
    assert low["verdict"] == "drifts"
    high = judged(write(tmp_path, [(width, hp, -loss) for width, hp, loss in rows]), mode="max")
    assert high.pop("mode") == "max"
    assert high == {key: value for key, value in low.items() if key != "mode"}


def test_the_regret_of_a_score_is_relative_to_the_best_score(tmp_path):
    best = {64: -11, 128: -10}
    rows = [(width, hp, 20 - 2 * abs(hp - best[width])) for width in best for hp in range(-13, -7)]
    result = verdict(str(write(tmp_path, rows)), axis="width", hp="hp", metric="loss", mode="max")
    assert [regret["relative"] for regret in result.data["regret"]] == [pytest.approx(0.1)]
    assert "20.00*" in result.text
    assert "-20" not in result.text


def test_log2_hp_of_a_raw_column_equals_a_column_in_log2(tmp_path):
    rows = [row[:3] for row in quadratic(drift=0.3, noise=0.002)]
    log2 = judged(write(tmp_path, rows))
    path = write(tmp_path, [(width, 2.0**hp, loss) for width, hp, loss in rows])
    raw = judged(path, log2_hp=True)
    assert raw["verdict"] == log2["verdict"]
    assert raw["drift_per_doubling"] == log2["drift_per_doubling"]
    for width, optimum in raw["optimum"].items():
        assert math.log2(optimum["fitted"]) == pytest.approx(log2["optimum"][width]["fitted"], abs=1e-12)
    assert verdict(str(path), axis="width", hp="hp", metric="loss").data["notes"] == [
        "hp grows by a factor: --log2-hp reads it in log2"
    ]


def test_duplicate_rows_are_counted_once_and_reported(tmp_path):
    rows = [row[:3] for row in quadratic(noise=0.01)]
    again = verdict(str(write(tmp_path, [*rows, *rows[:3]])), axis="width", hp="hp", metric="loss")
    assert again.data["duplicates"] == 3
    assert "note: 3 duplicate rows were counted once" in again.text
    assert judged(tmp_path / "runs.csv") == judged(write(tmp_path, rows, name="once.csv"))


def test_the_documentation_quotes_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    quoted = re.findall(r"^```console\n\$ muxfer verdict (.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE)
    assert len(quoted) == 2
    for options, printed in quoted:
        words = shlex.split(options)
        given = dict(zip(words[::2], words[1::2], strict=True))
        result = verdict(given["--table"], axis=given["--axis"], hp=given["--hp"], metric=given["--metric"])
        assert result.text == printed.rstrip("\n")
