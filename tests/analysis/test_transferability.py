"""Verdicts on curves whose truth is known: a parabola in log2 of the rate, shifted, cut or with divergences."""

import random

import pytest

from muxfer.analysis.cells import settled_table
from muxfer.analysis.transferability import best_setting
from muxfer.errors import BadInput
from muxfer.trial import Outcome
from tests.parabolas import curve, record, study, verdict_of


def test_optimum_that_stays_transfers_without_regret():
    verdict = verdict_of(study())
    assert verdict.verdict == "transfers"
    assert "width 32 (base_lr 2^-7) costs 0.00 % (at most 0.00 %) at width 128" in verdict.why
    assert verdict.from_ == 32
    assert [optimum.grid for optimum in verdict.optimum.values()] == [2.0**-7] * 3
    assert verdict.drift_per_doubling["value"] == pytest.approx(0, abs=1e-9)
    assert [(r.from_, r.to, r.setting, r.relative) for r in verdict.regret] == [
        (32, 128, 2**-7, 0.0),
        (64, 128, 2**-7, 0.0),
    ]


def test_moving_optimum_with_notable_regret_drifts():
    verdict = verdict_of(study(drift=-1.0, curvature=0.019))
    assert verdict.verdict == "drifts"
    assert verdict.regret[0].relative == pytest.approx(0.019 * 4)
    assert "costs 7.60 % (at most 7.60 %) at width 128, and it moves by -1.00 in log2 per doubling" in verdict.why
    assert verdict.from_ == 64  # one doubling costs 1.9 %, which is tolerated
    assert "from width 64 on it transfers" in verdict.why


def test_moving_optimum_with_small_regret_transfers():
    verdict = verdict_of(study(drift=-0.4, curvature=0.005))
    assert verdict.drift_per_doubling["high"] < 0
    assert verdict.verdict == "transfers"


def test_different_grid_optima_of_three_points_each_abstain():
    """Two degrees of freedom: the noise is known so badly that nothing is sure."""
    below = [record(32, 2.0**e, m) for e, m in ((-8, 1.1), (-7, 1.0), (-6, 1.2))]
    above = [record(64, 2.0**e, m) for e, m in ((-7, 1.02), (-6, 1.0), (-5, 1.1))]
    verdict = verdict_of(below + above)
    assert verdict.verdict == "abstains"
    assert "add seeds or values of base_lr" in verdict.why


def test_same_grid_optimum_is_no_proof_where_the_noise_is_larger():
    """Both widths have their lowest loss at 2^-7, by luck."""
    losses = {32: (1.06, 1.03, 1.0, 1.03, 1.04), 64: (1.01, 1.05, 1.0, 1.04, 1.03)}
    records = [record(w, 2.0**e, m) for w, row in losses.items() for e, m in zip(range(-9, -4), row, strict=True)]
    verdict = verdict_of(records)
    assert {optimum.grid for optimum in verdict.optimum.values()} == {2**-7}
    assert verdict.verdict == "abstains"


def test_noise_larger_than_the_differences_abstains():
    noise = random.Random(0)
    records = [
        record(w, 2.0**e, 1 + 0.01 * (e + 7) ** 2 + noise.gauss(0, 0.03)) for w in (32, 64, 128) for e in range(-10, -3)
    ]
    verdict = verdict_of(records)
    assert verdict.verdict == "abstains"
    assert "add seeds" in verdict.why


def test_optimum_has_the_largest_stable_and_the_first_divergent_rate():
    optimum = verdict_of(study(diverged=(-5, -4))).optimum[64]
    assert (optimum.grid, optimum.stable, optimum.diverges) == (2**-7, 2**-6, 2**-5)
    assert verdict_of(study()).optimum[64].diverges is None


def test_rate_that_finished_beyond_a_divergence_is_not_stable():
    optimum = verdict_of(study(diverged=(-5,))).optimum[64]
    assert (optimum.grid, optimum.stable, optimum.diverges) == (2**-7, 2**-6, 2**-5)


def test_divergence_below_the_optimum_does_not_limit_stability():
    optimum = verdict_of(study(diverged=(-10,))).optimum[64]
    assert (optimum.grid, optimum.stable, optimum.diverges) == (2**-7, 2**-4, None)


def test_nothing_is_stable_where_nothing_finished():
    optimum = verdict_of(study(diverged=range(-10, -3))).optimum[64]
    assert (optimum.grid, optimum.stable, optimum.diverges) == (None, None, 2**-10)


@pytest.mark.parametrize(("exponents", "end"), [(range(-7, -3), "lower end"), (range(-10, -6), "upper end")])
def test_optimum_at_the_grids_end_abstains(exponents, end):
    verdict = verdict_of(study(exponents=exponents))
    assert verdict.verdict == "abstains"
    assert end in verdict.why
    assert verdict.optimum[32].fitted is None


def test_optimum_at_the_grids_end_of_one_width_abstains():
    records = [r for r in study() if not (r.setting["width"] == 64 and r.setting["base_lr"] > 2**-7)]
    verdict = verdict_of(records)
    assert verdict.verdict == "abstains"
    assert "width 64" in verdict.why


def test_diverged_trial_closes_a_bracket():
    records = study(exponents=range(-10, -6)) + [record(w, 2**-6, None) for w in (32, 64, 128)]
    assert verdict_of(records).verdict == "transfers"


def test_failed_trial_does_not_close_a_bracket():
    records = study(exponents=range(-10, -6))
    records += [record(w, 2**-6, None, outcome=Outcome.FAILED) for w in (32, 64, 128)]
    assert verdict_of(records).verdict == "abstains"


def test_one_diverged_replicate_makes_its_setting_diverged():
    records = [*study(), record(128, 2**-7, None, replicate=1, step=42)]
    cell = settled_table(records, "width", "base_lr")[128][2**-7]
    assert (cell.outcome, cell.mean, cell.step) == (Outcome.DIVERGED, None, 42)
    assert cell.metrics == {0: pytest.approx(0.3)}
    verdict = verdict_of(records)
    assert verdict.verdict == "abstains"  # the optimum stays where it is at all other widths
    assert "diverges at width 128" in verdict.why
    assert verdict.to_dict()["regret"][0]["relative"] is None


def test_optimum_that_marches_to_divergence_drifts():
    """The standard parametrization does so: one step a doubling, and the rate of the smallest diverges."""
    records = [
        *curve(32, range(-9, -3), vertex=-5, curvature=0.3),
        *curve(64, range(-9, -3), vertex=-6, curvature=0.3, diverged=(-4,)),
        *curve(128, range(-9, -3), vertex=-7, curvature=0.3, diverged=(-5, -4)),
    ]
    verdict = verdict_of(records)
    assert verdict.verdict == "drifts"
    assert "diverges at width 128" in verdict.why


def test_best_metric_of_exactly_zero_transfers():
    records = [record(w, 2.0**e, abs(e + 7) / 10) for w in (32, 64) for e in (-8, -7, -6)]
    verdict = verdict_of(records)
    assert verdict.verdict == "transfers"
    assert verdict.regret[0].relative == 0


def test_metric_that_does_not_depend_on_the_setting_abstains():
    verdict = verdict_of([record(w, 2.0**e, 1.0) for w in (32, 64) for e in range(-9, -4)])
    assert verdict.verdict == "abstains"
    assert "does not depend on base_lr" in verdict.why


def test_replicates_are_averaged_and_one_lucky_run_does_not_win():
    records = [
        record(64, 2.0**e, m, replicate=i)
        for e, metrics in ((-8, (0.50, 0.50)), (-7, (0.40, 0.40)), (-6, (0.30, 0.60)))
        for i, m in enumerate(metrics)
    ]
    assert verdict_of(records).optimum[64].grid == 2**-7
    best = best_setting(records, axis="width", hp="base_lr")
    assert best is not None
    assert (best.setting["base_lr"], best.metric, len(best.records)) == (2**-7, pytest.approx(0.4), 2)


def test_smaller_setting_wins_between_equal_metrics():
    records = [record(64, 2.0**e, m) for e, m in ((-8, 1.0), (-7, 0.5), (-6, 0.5), (-5, 1.0))]
    assert verdict_of(records).optimum[64].grid == 2**-7


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "no trial has settled"),
        (curve(64, range(-9, -4), vertex=-7), "every trial has width 64"),
        (study(exponents=(-8, -7)), "an optimum needs at least 3"),
        (study(diverged=range(-10, -3)), "no base_lr of the 7 tried has a finite loss at width 32"),
    ],
)
def test_too_little_evidence_abstains_and_names_what_is_missing(records, why):
    verdict = verdict_of(records)
    assert verdict.verdict == "abstains"
    assert why in verdict.why


def test_optimum_that_never_ran_at_the_largest_width_abstains():
    records = [r for r in study() if not (r.setting["width"] == 128 and r.setting["base_lr"] == 2**-7)]
    verdict = verdict_of(records)
    assert verdict.verdict == "abstains"
    assert "run it there" in verdict.why


def test_target_does_not_change_the_verdict():
    target = record(256, 2**-7, 0.1, kind="target")
    assert verdict_of([*study(), target]) == verdict_of(study())


def test_order_of_the_records_does_not_change_the_verdict():
    records = study(drift=-0.3) + study(drift=-0.3, floor=0.31)
    for i, r in enumerate(records):
        object.__setattr__(r, "replicate", i // 21)
    shuffled = random.Random(0).sample(records, len(records))
    assert verdict_of(shuffled) == verdict_of(records)


def test_further_settings_are_held_at_their_best_at_the_largest_width():
    good = [r for w in (32, 64) for r in [record(w, 2.0**e, 1 + (e + 7) ** 2 / 50, decay=0.1) for e in range(-9, -4)]]
    poor = [r for w in (32, 64) for r in [record(w, 2.0**e, 2 + (e + 5) ** 2 / 50, decay=0.0) for e in range(-9, -4)]]
    verdict = verdict_of(poor + good)
    assert verdict == verdict_of(good)
    best = best_setting(poor + good, axis="width", hp="base_lr")
    assert best is not None
    assert best.setting == {"width": 64, "base_lr": 2**-7, "decay": 0.1}


def test_no_best_setting_where_nothing_finished():
    assert best_setting(study(diverged=range(-10, -3)), axis="width", hp="base_lr") is None
    assert best_setting([], axis="width", hp="base_lr") is None


@pytest.mark.parametrize("value", [None, "high"])
def test_record_without_a_number_is_refused_with_its_key(value):
    bad = record(64, 2**-7, 0.3, note=1)
    setting = {"width": 64} if value is None else {"width": 64, "base_lr": value}
    object.__setattr__(bad, "setting", setting)
    with pytest.raises(BadInput, match=f"{bad.key} has base_lr"):
        verdict_of([bad])
