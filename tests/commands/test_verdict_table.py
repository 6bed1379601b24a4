"""Anybody's table: read as the papers read theirs, the same in any order of rows, a clear line where it is no table."""

import csv
import io
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from muxfer.analysis.cells import settled_table
from muxfer.analysis.transferability import judge_table
from muxfer.commands import verdict_table as table_verdict
from muxfer.commands.verdict_table import verdict
from muxfer.errors import BadInput
from muxfer.trial import Outcome, Record

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "verdict.md"
TABLES = ROOT / "tests" / "tables"
LR, MULTIPLIER = TABLES / "dit_mup_base_lr_by_width.csv", TABLES / "dit_mup_output_mult_by_width.csv"
SCORES = {"fid50k": "min", "sfid50k": "min", "inception_score": "max", "precision": "max", "recall": "max"}


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "muxfer", "verdict", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def judged(path, hp="hp", metric="loss", axis="width", **more):
    """What the verdict says of the runs: without what it says of the file."""
    data = verdict(str(path), axis=axis, hp=hp, metric=metric, **more).data
    return {key: value for key, value in data.items() if key not in ("table", "rows", "duplicates", "notes")}


def write(folder, rows, header="width,hp,loss", name="runs.csv"):
    path = folder / name
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def quadratic(*, drift=0.0, seeds=1, noise=0.0, widths=(64, 128, 256), seed=0):
    """Rows (width, log2 setting, loss, seed) of a known parabola whose vertex drifts per doubling."""
    rng = np.random.default_rng(seed)
    return [
        (width, hp, 1 + 0.02 * (hp + 10 - drift * doubling) ** 2 + noise * rng.normal(), number)
        for doubling, width in enumerate(widths)
        for hp in range(-14, -6)
        for number in range(seeds)
    ]


@pytest.mark.parametrize("metric", SCORES)
def test_the_paper_s_learning_rate_transfers_from_the_smallest_width_on(metric):
    data = judged(LR, "log2_base_lr", metric, mode=SCORES[metric])
    assert data["verdict"] == "transfers"
    assert {width: optimum["grid"] for width, optimum in data["optimum"].items()} == {
        "144": -10,
        "288": -10,
        "576": -10,
    }
    assert {width: optimum["stable"] for width, optimum in data["optimum"].items()} == dict.fromkeys(
        data["optimum"], -10
    )
    assert data["from"] == 144
    assert [regret["relative"] for regret in data["regret"]] == [0, 0]


@pytest.mark.parametrize("metric", SCORES)
def test_the_paper_s_output_multiplier_does_not_drift(metric):
    assert judged(MULTIPLIER, "log2_output_mult", metric, mode=SCORES[metric])["verdict"] != "drifts"


def test_the_command_prints_the_table_and_the_verdict_or_one_json_object():
    columns = ("--axis", "width", "--metric", "fid50k")
    done = command("--table", LR, *columns, "--hp", "log2_base_lr")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("fid50k")
    assert [line.split()[1:] for line in lines if line.startswith("-10 ")] == [["88.89*", "61.65*", "43.73*"]]
    assert any(line.startswith("verdict: transfers: ") for line in lines)
    assert "validation loss" not in done.stdout
    done = command("--table", MULTIPLIER, *columns, "--hp", "log2_output_mult", "--json")
    assert done.returncode == 6, done.stderr
    data = json.loads(done.stdout)
    assert data["verdict"] == "abstains"
    assert next(iter(data["optimum"]["576"])) == "grid"
    assert {"from", "to", "setting", "relative"} <= set(data["regret"][0])
    assert set(data["drift_per_doubling"]) >= {"value", "low", "high"}
    assert (data["rows"], data["duplicates"]) == (21, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_what_cannot_be_judged_is_one_line_and_exit_code_2(arguments, told):
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert told in line


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
    rows, options, told = REFUSED[case]
    path = write(tmp_path, rows, "width,hp,loss,seed" if len(rows[0]) == 4 else "width,hp,loss")
    with pytest.raises(BadInput, match="runs.csv|named twice") as refused:
        judged(path, **options)
    assert told in str(refused.value)


@pytest.mark.parametrize("metric", ["", "NaN", "inf", "-inf", "1e999"])
def test_a_metric_that_is_no_finite_number_means_diverged(tmp_path, metric):
    rows = [(width, hp, metric if hp > -9 else loss) for width, hp, loss, _ in quadratic(noise=0.001)]
    data = judged(write(tmp_path, rows))
    assert data["verdict"] == "transfers"
    assert [optimum["diverges"] for optimum in data["optimum"].values()] == [-8, -8, -8]
    assert judged(write(tmp_path, [(*row[:2], "") for row in rows]))["verdict"] == "abstains"


def test_a_table_that_is_too_small_abstains(tmp_path):
    assert judged(write(tmp_path, [(64, -3, 1)]))["verdict"] == "abstains"
    assert judged(write(tmp_path, [(64, -3, ""), (128, -3, "")]))["verdict"] == "abstains"


def test_a_drift_is_called_one_whichever_sign_is_better(tmp_path):
    rows = [row[:3] for row in quadratic(drift=1.0, noise=0.001)]
    low = judged(write(tmp_path, rows))
    assert low["verdict"] == "drifts"
    high = judged(write(tmp_path, [(width, hp, -loss) for width, hp, loss in rows]), mode="max")
    assert high.pop("mode") == "max"
    assert high == {key: value for key, value in low.items() if key != "mode"}


def test_the_regret_of_a_score_is_a_share_of_the_best_score(tmp_path):
    best = {64: -11, 128: -10}
    rows = [(width, hp, 20 - 2 * abs(hp - best[width])) for width in best for hp in range(-13, -7)]
    answer = verdict(str(write(tmp_path, rows)), axis="width", hp="hp", metric="loss", mode="max")
    assert [regret["relative"] for regret in answer.data["regret"]] == [pytest.approx(0.1)]
    assert "20.00*" in answer.text
    assert "-20" not in answer.text


def test_log2_of_a_raw_column_reads_as_the_column_in_log2(tmp_path):
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


def test_duplicates_are_counted_once_and_said(tmp_path):
    rows = [row[:3] for row in quadratic(noise=0.01)]
    again = verdict(str(write(tmp_path, [*rows, *rows[:3]])), axis="width", hp="hp", metric="loss")
    assert again.data["duplicates"] == 3
    assert "note: 3 duplicate rows were counted once" in again.text
    assert judged(tmp_path / "runs.csv") == judged(write(tmp_path, rows, name="once.csv"))


def test_seeds_pair_the_runs_of_different_cells_and_rows_without_seeds_do_not(tmp_path):
    luck = (-0.05, -0.02, 0.02, 0.05)
    rows = [(w, hp, loss + luck[number], number + 100) for w, hp, loss, number in quadratic(seeds=4, noise=0.001)]
    path = write(tmp_path, rows, "width,hp,loss,seed")
    paired, alone = judged(path, seed="seed"), judged(path)
    assert paired["noise"] < 0.002
    assert alone["noise"] > 0.02
    wide, narrow = (data["drift_per_doubling"] for data in (alone, paired))
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])


def test_values_that_two_programs_wrote_are_one_value(tmp_path):
    rows = [row[:3] for row in quadratic()]
    other = [(width, hp * (1 + 1e-15) if width == 64 else hp, loss) for width, hp, loss in rows]
    grid = judged(write(tmp_path, other))["optimum"]
    assert len({optimum["grid"] for optimum in grid.values()}) == 1


def oracle(text, *, metric, hp, mode, seed):
    """The same reading by the csv module, records and no numpy."""
    runs = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text))):
        loss = float(row[metric] or "nan")
        where = float(row["width"]), float(row[hp]), loss if math.isfinite(loss) else None
        runs.setdefault((*where, float(row[seed]) if seed else None), number)
    sign = -1.0 if mode == "max" else 1.0
    seeds = sorted({key[3] for key in runs}) if seed else []
    records = [
        Record(
            key=str(number),
            setting={"width": width, "hp": value},
            replicate=number if replicate is None else seeds.index(replicate),
            outcome=Outcome.DIVERGED if loss is None else Outcome.FINISHED,
            metric=None if loss is None else sign * loss,
            step=0,
        )
        for (width, value, loss, replicate), number in runs.items()
    ]
    table = settled_table(records, "width", "hp")
    return judge_table(table, axis="width", hp="hp", log2_hp=False, paired=seed is not None)


WORDS = ["", "abc", "NaN", "inf", "-inf", "1e308", "-1e99", "1e-99", "0", "-0", "1_000", '"1,5"', '"', "\0", "é", " 5"]
WORDS += ["0x10", "-5", "1e19", "-1e19", "1e-19", "88.89", "144", "99999999999999999999", "1e400"]


def mutated(rows, rng):
    """The table, changed in one to three ways as people and programs change tables."""
    for _ in range(rng.randint(1, 3)):
        header, body = rows[0], [list(row) for row in rows[1:]]
        column = rng.randrange(len(header))
        match rng.randrange(9):
            case 0:
                header, body = (
                    header[:column] + header[column + 1 :],
                    [row[:column] + row[column + 1 :] for row in body],
                )
            case 1 | 2 if body:
                body[rng.randrange(len(body))][column] = rng.choice(WORDS)
            case 3 if body:
                body.insert(rng.randrange(len(body)), list(rng.choice(body)))
            case 4:
                rng.shuffle(body)
            case 5:
                body = body[: rng.choice([0, 1, 2, len(body) // 2, len(body)])]
            case 6:
                body = [
                    [*row[:2], *(cell if cell in ("NaN", "") else f"-{cell.lstrip('-')}" for cell in row[2:])]
                    for row in body
                ]
            case 7:
                word = rng.choice(WORDS)
                body = [[word if i == column else cell for i, cell in enumerate(row)] for row in body]
            case 8:
                body = [
                    [*row[:2], *(f"{cell}9{number}" if cell != "NaN" else cell for cell in row[2:])]
                    for number in range(3)
                    for row in body
                ]
        if not header:
            break
        rows = [header, *body]
    return rows


def test_300_mutated_tables_give_a_clear_line_or_the_verdict_on_what_is_left(tmp_path):
    rng = random.Random(4)
    refused, num_judged = [], 0
    for _ in range(300):
        path = rng.choice([LR, MULTIPLIER])
        hp = path.read_text().split(",")[1]
        metric = rng.choice(list(SCORES))
        seed = rng.choice([None, None, "recall"])
        rows = mutated([line.split(",") for line in path.read_text().split()], rng)
        text = "\n".join(",".join(row) for row in rows) + "\n"
        (tmp_path / "runs.csv").write_text(text)
        options = {"axis": "width", "hp": hp, "metric": metric, "mode": SCORES[metric], "seed": seed}
        try:
            answer = verdict(str(tmp_path / "runs.csv"), **options)
        except BadInput as error:
            refused.append(str(error))
            continue
        num_judged += 1
        json.dumps(answer.data, allow_nan=False)
        expected = oracle(text, hp=hp, metric=metric, mode=SCORES[metric], seed=seed)
        assert answer.data["verdict"] == expected.verdict, text
        found = {axis: optimum["grid"] for axis, optimum in answer.data["optimum"].items()}
        assert found == {f"{axis:g}": optimum.grid for axis, optimum in expected.optimum.items()}
    assert min(num_judged, len(refused)) > 60
    assert all(len(line.splitlines()) == 1 and len(line) < 500 + len(str(tmp_path)) for line in refused)


def test_the_order_of_the_rows_never_matters(tmp_path):
    rng = random.Random(0)
    for number in range(20):
        rows = quadratic(drift=rng.choice([0, 0.3, 1]), seeds=rng.choice([1, 3]), noise=0.02, seed=number)
        rows = [(*row[:2], "" if rng.random() < 0.05 else row[2], row[3]) for row in rows]
        shuffled = rng.sample(rows, len(rows))
        for seed in (None, "seed"):
            first = judged(write(tmp_path, rows, "width,hp,loss,seed"), seed=seed)
            assert judged(write(tmp_path, shuffled, "width,hp,loss,seed"), seed=seed) == first


def test_300_000_rows_are_judged_as_their_means_with_the_noise_of_one_run(tmp_path):
    rng = np.random.default_rng(0)
    num_rows = 300_000
    width, hp = rng.choice([64, 128, 256], num_rows), rng.integers(-14, -6, num_rows)
    loss = 1 + 0.02 * (hp + 10) ** 2 + 0.01 * rng.normal(size=num_rows)
    path = tmp_path / "runs.csv"
    np.savetxt(
        path, np.stack([width, hp, loss], axis=1), fmt="%.15g", delimiter=",", header="width,hp,loss", comments=""
    )
    data = judged(path)
    assert data["verdict"] == "transfers"
    assert data["noise"] == pytest.approx(0.01, rel=0.05)
    for optimum in data["optimum"].values():
        assert optimum["grid"] == -10
        assert optimum["low"] < optimum["fitted"] < optimum["high"]
        assert optimum["fitted"] == pytest.approx(-10, abs=0.01)
        assert 0 < optimum["high"] - optimum["low"] < 0.02


def test_many_runs_a_cell_are_handed_on_as_means_of_groups_that_keep_mean_and_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(table_verdict, "MAX_REPLICATES", 50)
    rng = np.random.default_rng(1)
    rows = [(*row[:2], row[2], number) for number, row in enumerate(quadratic(seeds=2000, noise=0.01))]
    columns = table_verdict.Columns(path="", axis="width", hp="hp", metric="loss")
    values = dict(zip(("width", "hp", "loss", "seed"), np.array(rng.permutation(rows)).T, strict=True))
    grouped = table_verdict.group(values, columns, sign=1.0, log2_hp=False)
    for row in grouped.table.values():
        for cell in row.values():
            runs = [loss for width, hp, loss, _ in rows if (width, hp) == (cell.axis, cell.hp)]
            assert cell.mean == pytest.approx(np.mean(runs), rel=1e-12)
            assert len(cell.metrics) == 50
            spread = np.std(list(cell.metrics.values()), ddof=1) * math.sqrt(grouped.per_replicate)
            assert spread == pytest.approx(0.01, rel=0.35)  # 50 groups: a standard error of 10 %, 24 cells


def test_points_on_a_straight_line_curve_nowhere(tmp_path):
    rows = [
        (width, hp, loss + off)
        for width in (64, 128)
        for hp, loss in ((-12, 1.0625), (-11, 1.03125), (-10, 1.0))
        for off in (-1 / 128, 1 / 128)
    ]
    data = judged(write(tmp_path, rows))
    assert data["verdict"] == "abstains"
    assert [optimum["fitted"] for optimum in data["optimum"].values()] == [None, None]


def test_the_page_quotes_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    quoted = re.findall(r"^```console\n\$ muxfer verdict (.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE)
    assert len(quoted) == 2
    for options, printed in quoted:
        words = shlex.split(options)
        given = dict(zip(words[::2], words[1::2], strict=True))
        answer = verdict(given["--table"], axis=given["--axis"], hp=given["--hp"], metric=given["--metric"])
        assert answer.text == printed.rstrip("\n")
