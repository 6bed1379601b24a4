"""A study as a table for the terminal and as CSV: every loss is there, and it fits."""

import csv
import io

import numpy as np
import pytest

from muxfer.analysis.cells import settings_at_largest
from muxfer.report.format import csv_text
from muxfer.report.study_page import write
from muxfer.report.text import table_text
from muxfer.trial import Outcome, Record
from tests.synthetic import judged, make_search, make_study, points_of, settled


def test_table_holds_every_loss_and_fits_the_terminal():
    records = make_study()
    verdict = judged(records)
    text = table_text(records, verdict)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["base_lr", "width", "32", "width", "64", "width", "128"]
    assert [line.split()[0] for line in lines[3:9]] == [f"2^{e}" for e in range(-9, -3)]
    assert text.count("*") == 1 + 3
    assert "diverged@17" in text
    assert "31.5" in text
    assert lines[10].split("  ")[0] == "width"
    assert [line.split()[:2] for line in lines[11:14]] == [["32", "2^-7"], ["64", "2^-7"], ["128", "2^-7"]]
    assert "verdict: transfers" in text


def test_table_states_intervals_drift_and_largest_stable_value():
    records = make_study()
    verdict = judged(records)
    text = " ".join(table_text(records, verdict).split())
    for optimum in verdict.optimum.values():
        assert f"2^{np.log2(optimum.low):.2f} to 2^{np.log2(optimum.high):.2f}" in text
    drift = verdict.drift_per_doubling
    assert f"drift: {drift['value']:+.2f} (95 %: {drift['low']:+.2f} to {drift['high']:+.2f})" in text
    above = np.log2(2.0**-5 / verdict.optimum[128].fitted)
    assert f"the optimum is {above:.1f} doublings below the largest stable base_lr, 2^-5" in text
    assert f"from: width {verdict.from_:g} on" in text


def test_table_of_optima_fits_the_terminal_with_long_numbers():
    records = make_study(widths=(16384, 32768, 65536))
    for record in records:
        record.setting["base_lr"] *= 0.0123456789
    assert max(map(len, table_text(records, judged(records)).splitlines())) <= 80


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_search_has_best_settings_in_the_terminal_and_every_setting_on_the_page(tmp_path):
    records = make_search()
    best = min((r for r in records if r.metric), key=lambda r: r.metric)
    text = table_text(records, judged(records))
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[2].startswith(f"{best.metric:<12.4g}")
    importances = {"base_lr": 0.7, "gradient_clip": 0.25, "warmup_steps": 0.05}
    context = {"importances": importances, "points": points_of(records)}
    page = write("mmdit-random", tmp_path, records, judged(records), context=context)
    rows = rows_of(tmp_path / "parallel.csv")
    assert [row["metric"] == "" for row in rows].count(True) == 4
    assert float(rows[0]["metric"]) == best.metric
    shares = rows_of(tmp_path / "importances.csv")
    assert {row["setting"]: float(row["importance"]) for row in shares} == importances
    svg = (tmp_path / "parallel.svg").read_text()
    for name in ("base_lr", "gradient_clip", "warmup_steps", "sampler", "early", "no loss"):
        assert f">{name}</text>" in svg
    assert "<h2>What the search tried</h2>" in page.read_text()
    assert "the best of 24 settings" in text


def test_longer_trials_are_not_compared_with_shorter_ones():
    records = make_search()
    long = settled({**records[1].setting, "steps": 99}, 0.1, step=99)
    with_long, without = (settings_at_largest(some, "width") for some in ([*records, long], records))
    assert [one.metric for one in with_long] == [one.metric for one in without]


def test_table_of_many_columns_shortens_diverged_to_d():
    records = make_study(widths=(16, 32, 64, 128, 256, 512, 1024))
    lines = table_text(records, judged(records)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "d@17" in "\n".join(lines)


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.FAILED])
def test_study_without_a_finite_loss_has_table_and_page(outcome, tmp_path):
    records = [settled({"base_lr": 0.1, "width": w}, None, key=f"k{w}", step=3, outcome=outcome) for w in (32, 64)]
    assert str(outcome) in table_text(records, judged(records))
    assert "Cannot tell" in write("broken", tmp_path, records, judged(records)).read_text()


def test_empty_study_has_table_and_page(tmp_path):
    verdict = judged([])
    assert "no trial has settled" in table_text([], verdict)
    assert "No trial has settled" in write("empty", tmp_path, [], verdict).read_text()


def test_csv_round_trips_every_trial():
    records = make_study()
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    read = [
        Record(
            key="",
            setting={"base_lr": float(row["base_lr"]), "width": int(row["width"])},
            replicate=int(row["replicate"]),
            outcome=Outcome(row["outcome"]),
            metric=float(row["metric"]) if row["metric"] else None,
            step=int(row["step"]),
        )
        for row in rows
    ]
    assert len(read) == len(records)
    assert judged(read) == judged(records)
