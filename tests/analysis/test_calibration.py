"""The verdict's intervals cover as they promise, on studies whose truth is known (500 a case: docs/verdict.md)."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import SHAPES, Case, cases, measured, synthetic, table_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "data" / "calibration.json"
STUDIES = 60


def published():
    return [
        (Case(**{one.name: row[one.name] for one in fields(Case)}), row) for row in json.loads(PUBLISHED.read_text())
    ]


def test_synthetic_study_has_its_optima_and_its_costs():
    case = Case(shape="digits", seeds=2, drift=0.5, noise=0.0)
    study = synthetic(case, np.random.default_rng(0))
    assert np.diff(list(study.optimum.values())) == pytest.approx([0.5, 0.5])
    for k, (width, row) in enumerate(study.table.items()):
        for x, cell in row.items():
            cost = SHAPES["digits"].cost(np.array([x - study.optimum[width]]))[0]
            assert cell.mean is None if np.isnan(cost) else cell.mean == pytest.approx(0.85**k * (1 + cost))


@pytest.mark.parametrize(
    "case",
    [
        Case(shape="language", noise=0.002, seeds=3, drift=-0.5),
        Case(shape="digits", noise=0.02, seeds=1, drift=-1),
        Case(shape="digits", noise=0.01, seeds=2, drift=-0.5, missing=0.3),
        Case(shape="flat", noise=0.003, seeds=3),
    ],
    ids=lambda case: f"{case.shape}-{case.noise}",
)
def test_intervals_cover_the_truth_on_lopsided_curves(case):
    """Of 60 draws at a true coverage of 95 %, fewer than 50 cover with a probability of 0.001."""
    row = measured(case, studies=STUDIES)
    for name in ("optimum", "drift", "regret"):
        assert row[f"{name}_covered"] >= 50 / STUDIES, name
    assert row["wrong"] <= 0.1


def test_seven_rates_decide_most_studies_correctly():
    still = measured(Case(shape="quadratic", noise=0.01, seeds=1), studies=STUDIES)
    moving = measured(Case(shape="quadratic", noise=0.01, seeds=1, drift=1), studies=STUDIES)
    assert still["transfers"] >= 0.85
    assert still["drifts"] <= 0.05
    assert moving["drifts"] >= 0.85
    assert moving["transfers"] <= 0.05


def test_published_table_has_the_promised_coverage():
    rows = published()
    assert [case for case, _ in rows] == cases()
    for case, row in rows:
        assert row["studies"] >= 500
        assert row["wrong"] <= 0.05, case
        for name in ("optimum", "drift", "regret"):
            assert row[f"{name}_covered"] is None or row[f"{name}_covered"] >= 0.9, (case, name)
    assert np.mean([row["choice"] for _, row in rows]) < np.mean([row["plain"] for _, row in rows])


def test_page_prints_the_published_table():
    assert table_text(published()) in (PUBLISHED.parents[1] / "verdict.md").read_text()
