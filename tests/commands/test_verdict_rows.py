"""`muxfer verdict --table` turns rows into cells: seeds, duplicates, damaged rows, and very many rows."""

import csv
import io
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from muxfer.analysis.cells import settled_table
from muxfer.analysis.transferability import judge_table
from muxfer.commands import verdict_table
from muxfer.commands.verdict_table import verdict
from muxfer.errors import BadInput
from tests.commands.drift_tables import LR, MULTIPLIER, SCORES, judged, quadratic, write
from tests.synthetic import settled


def test_only_a_seed_column_pairs_the_runs_of_different_cells(tmp_path):
    luck = (-0.05, -0.02, 0.02, 0.05)
    rows = [(w, hp, loss * (1 + luck[number]), number + 100) for w, hp, loss, number in quadratic(seeds=4, noise=0.001)]
    path = write(tmp_path, rows, "width,hp,loss,seed")
    paired, alone = judged(path, seed="seed"), judged(path)
    assert paired["noise"] < 0.002
    assert alone["noise"] > 0.02
    wide, narrow = (data["drift_per_doubling"] for data in (alone, paired))
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])


def test_values_that_differ_by_rounding_are_one_value(tmp_path):
    rows = [row[:3] for row in quadratic()]
    other = [(width, hp * (1 + 1e-15) if width == 64 else hp, loss) for width, hp, loss in rows]
    grid = judged(write(tmp_path, other))["optimum"]
    assert len({optimum["grid"] for optimum in grid.values()}) == 1


def reference_verdict(text, *, metric, hp, mode, seed):
    """The verdict of a simple reader: csv.DictReader and records, without numpy."""
    runs, rows = {}, set()
    for number, row in enumerate(csv.DictReader(io.StringIO(text))):
        if tuple(row.items()) in rows:
            continue
        rows.add(tuple(row.items()))
        loss = float(row[metric] or "nan")
        where = float(row["width"]), float(row[hp]), loss if math.isfinite(loss) else None
        runs.setdefault((*where, float(row[seed]) if seed else number), number)
    sign = -1.0 if mode == "max" else 1.0
    seeds = sorted({key[3] for key in runs}) if seed else []
    records = [
        settled(
            {"width": width, "hp": value},
            None if loss is None else sign * loss,
            replicate=seeds.index(replicate) if seed else replicate,
        )
        for width, value, loss, replicate in runs
    ]
    table = settled_table(records, "width", "hp")
    return judge_table(table, axis="width", hp="hp", log2_hp=False, paired=seed is not None)


WORDS = ["", "abc", "NaN", "inf", "-inf", "1e308", "-1e99", "1e-99", "0", "-0", "1_000", '"1,5"', '"', "\0", "é", " 5"]
WORDS += ["0x10", "-5", "1e19", "-1e19", "1e-19", "88.89", "144", "99999999999999999999", "1e400"]


def mutated(rows, rng):
    """The table with one to three changes, such as people and programs make."""
    for _ in range(rng.randint(1, 3)):
        header, body = rows[0], [list(row) for row in rows[1:]]
        column = rng.randrange(len(header))
        match rng.randrange(9):
            case 0:
                header, *body = (row[:column] + row[column + 1 :] for row in (header, *body))
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


def test_300_mutated_tables_are_refused_in_one_line_or_judged_as_by_a_simple_reader(tmp_path):
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
            result = verdict(str(tmp_path / "runs.csv"), **options)
        except BadInput as error:
            refused.append(str(error))
            continue
        num_judged += 1
        json.dumps(result.data, allow_nan=False)
        expected = reference_verdict(text, hp=hp, metric=metric, mode=SCORES[metric], seed=seed)
        assert result.data["verdict"] == expected.verdict, text
        grid = {axis: optimum["grid"] for axis, optimum in result.data["optimum"].items()}
        assert grid == {f"{axis:g}": optimum.grid for axis, optimum in expected.optimum.items()}
    assert min(num_judged, len(refused)) > 60
    assert all(len(line.splitlines()) == 1 and len(line) < 500 + len(str(tmp_path)) for line in refused)


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    rng = random.Random(0)
    for number in range(20):
        rows = quadratic(drift=rng.choice([0, 0.3, 1]), seeds=rng.choice([1, 3]), noise=0.02, seed=number)
        rows = [(*row[:2], "" if rng.random() < 0.05 else row[2], row[3]) for row in rows]
        shuffled = rng.sample(rows, len(rows))
        for seed in (None, "seed"):
            first = judged(write(tmp_path, rows, "width,hp,loss,seed"), seed=seed)
            assert judged(write(tmp_path, shuffled, "width,hp,loss,seed"), seed=seed) == first


def test_300_000_rows_are_judged_by_their_means_with_the_noise_of_one_run(tmp_path):
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
    assert data["noise"] == pytest.approx(0.01, rel=0.15)  # of the metric, which is larger away from the optimum
    for optimum in data["optimum"].values():
        assert optimum["grid"] == -10
        assert optimum["low"] < optimum["fitted"] < optimum["high"]
        assert optimum["fitted"] == pytest.approx(-10, abs=0.01)
        assert 0 < optimum["high"] - optimum["low"] < 0.5


def test_group_means_of_many_runs_keep_the_mean_and_spread_of_a_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_table, "MAX_REPLICATES", 50)
    rng = np.random.default_rng(1)
    rows = [(*row[:2], row[2], number) for number, row in enumerate(quadratic(seeds=2000, noise=0.01))]
    columns = verdict_table.Columns(path="", axis="width", hp="hp", metric="loss")
    values = dict(zip(("width", "hp", "loss", "seed"), np.array(rng.permutation(rows)).T, strict=True))
    columns = replace(columns, rows=np.arange(len(rows)))
    grid = verdict_table.find_grid(values, columns, log2_hp=False)
    grouped = verdict_table.group(values, grid, columns, sign=1.0)
    for row in grouped.table.values():
        for cell in row.values():
            runs = [loss for width, hp, loss, _ in rows if (width, hp) == (cell.axis, cell.hp)]
            assert cell.mean == pytest.approx(np.mean(runs), rel=1e-12)
            assert len(cell.metrics) == 50
            spread = np.std(list(cell.metrics.values()), ddof=1) * math.sqrt(grouped.per_replicate)
            assert spread == pytest.approx(0.01, rel=0.35)  # 50 groups: a standard error of 10 %, 24 cells


def test_points_on_a_straight_line_have_no_fitted_optimum(tmp_path):
    rows = [
        (width, hp, loss + off)
        for width in (64, 128)
        for hp, loss in ((-12, 1.0625), (-11, 1.03125), (-10, 1.0))
        for off in (-1 / 128, 1 / 128)
    ]
    data = judged(write(tmp_path, rows))
    assert data["verdict"] == "abstains"
    assert [optimum["fitted"] for optimum in data["optimum"].values()] == [None, None]
