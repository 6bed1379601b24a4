"""The verdict's intervals cover as they promise, on studies whose truth is known (1,000 a case: docs/verdict.md)."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import CURVATURE, Case, measured, quadratic, synthetic, table_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "data" / "calibration.json"
STUDIES = 150
"""An interval that covers 95 % covers 91 to 98.5 % of 3 x 150 optima, and 89 to 99.5 % of 150 drifts."""


def test_synthetic_study_has_its_optima_and_its_curvature():
    table, truth = synthetic(Case(rates=7, seeds=2, drift=0.5, noise=0.0), np.random.default_rng(0))
    assert np.diff(truth) == pytest.approx([0.5, 0.5])
    for row, optimum in zip(table.values(), truth, strict=True):
        level = row[0.0].mean / (1 + quadratic(np.array([0.0 - optimum]))[0])
        for x, cell in row.items():
            assert cell.mean == pytest.approx(level * (1 + CURVATURE * (x - optimum) ** 2))


@pytest.mark.parametrize(("rates", "seeds", "drift"), [(5, 1, 0.0), (5, 3, 1.0), (7, 1, 0.5), (7, 3, 0.0)])
def test_intervals_of_optimum_and_drift_cover_the_truth(rates, seeds, drift):
    shares = measured(Case(rates=rates, seeds=seeds, drift=drift), studies=STUDIES)
    assert 0.91 <= shares["optimum_covered"] <= 0.985
    assert 0.89 <= shares["drift_covered"] <= 0.995


@pytest.mark.parametrize("seeds", [1, 3])
def test_seven_rates_decide_most_studies_correctly(seeds):
    still = measured(Case(rates=7, seeds=seeds, drift=0.0), studies=STUDIES)
    moving = measured(Case(rates=7, seeds=seeds, drift=1.0), studies=STUDIES)
    assert still["transfers"] >= 0.8
    assert still["drifts"] <= 0.05
    assert moving["drifts"] >= 0.8
    assert moving["transfers"] <= 0.05


def test_published_table_has_the_promised_coverage():
    """1,000 studies a case, as docs/verdict.md prints them."""
    rows = [row for row in json.loads(PUBLISHED.read_text()) if row["shape"] == "quadratic" and not row["block"]]
    assert len(rows) == 12
    for row in rows:
        assert row["studies"] >= 1000
        assert 0.92 <= row["optimum_covered"] <= 0.98
        assert 0.92 <= row["drift_covered"] <= 0.98
        assert row["transfers"] <= (0.05 if row["drift"] == 1 else 1)
        assert row["drifts"] <= (0.05 if row["drift"] == 0 else 1)
        if row["rates"] == 7 and row["drift"] != 0.5:
            assert row["transfers" if row["drift"] == 0 else "drifts"] >= 0.8


def test_page_prints_the_published_table():
    rows = [(Case(**{k: row[k] for k in Case.__dataclass_fields__}), row) for row in json.loads(PUBLISHED.read_text())]
    assert table_text(rows) in (PUBLISHED.parents[1] / "verdict.md").read_text()


def test_shift_of_all_trials_of_a_seed_does_not_change_the_verdict():
    shares = measured(Case(rates=7, seeds=3, drift=1.0, block=0.05), studies=100)
    assert shares["drifts"] >= 0.9
    assert shares["drift_covered"] >= 0.88


def test_large_noise_is_rarely_called_a_drift():
    shares = measured(Case(rates=7, seeds=1, drift=0.0, noise=0.05), studies=STUDIES)
    assert shares["drifts"] <= 0.05
    assert shares["abstains"] >= 0.5
