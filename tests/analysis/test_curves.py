"""What is read from the curves: their minima, the drift that aligns them, the noise and the smoothed choice."""

import math
import random

import pytest

from muxfer.analysis.transferability import best_setting
from tests.parabolas import curve, record, replaced, study, verdict_of


@pytest.mark.parametrize("offset", [-0.45, -0.2, 0.0, 0.3, 0.45])
@pytest.mark.parametrize("curvature", [0.001, 0.015, 0.2])
def test_curve_has_its_minimum_at_the_vertex_of_a_parabola(offset, curvature):
    verdict = verdict_of(curve(64, range(-10, -3), vertex=-7 + offset, curvature=curvature))
    assert math.log2(verdict.optimum[64].fitted) == pytest.approx(-7 + offset, abs=0.02)


def test_drift_of_half_a_step_per_doubling_is_measured():
    verdict = verdict_of(study(drift=-0.5))
    assert verdict.drift_per_doubling["value"] == pytest.approx(-0.5, abs=1e-4)


def test_interval_of_the_drift_shrinks_as_the_noise_does():
    """A tenth of the same residuals gives a tenth of the interval, with the estimate inside."""
    noise = random.Random(1)
    residuals = [noise.gauss(0, 0.004) for _ in range(2 * 21)]

    def drift(share):
        records = [*study(), *study()]
        for i, (one, residual) in enumerate(zip(records, residuals, strict=True)):
            records[i] = replaced(one, metric=one.metric * (1 + share * residual), replicate=i // 21)
        return verdict_of(records).drift_per_doubling

    wide, narrow = drift(1.0), drift(0.1)
    for one in (wide, narrow):
        assert one["low"] < one["value"] < one["high"]
    ratio = (wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])
    assert ratio == pytest.approx(10, rel=0.2)


def test_a_curve_of_three_points_alone_tells_no_noise():
    verdict = verdict_of([record(64, 2.0**e, m) for e, m in ((-8, 1.1), (-7, 1.0), (-6, 1.3))])
    assert verdict.noise is None
    assert (verdict.optimum[64].low, verdict.optimum[64].high) == (None, None)
    assert -7.3 < math.log2(verdict.optimum[64].fitted) < -7


def test_interval_is_open_where_no_cell_bounds_it():
    """Flat to the left: nothing says that a smaller rate is worse."""
    losses = {32: (1.0005, 0.9995, 1.0005, 1.0, 1.05, 1.2), 64: (1.0, 1.0006, 0.9996, 0.9998, 1.0493, 1.2)}
    records = [record(w, 2.0**e, m) for w, row in losses.items() for e, m in zip(range(-10, -4), row, strict=True)]
    optimum = verdict_of(records).optimum[64]
    assert optimum.low is None
    assert 2**-7 <= optimum.high <= 2**-6


def test_shift_of_all_trials_of_a_seed_is_no_noise():
    """Randomness is paired: replicates that differ by 10 % as a whole do not make the optimum uncertain."""
    offsets = {0: 0.0, 1: 0.1, 2: -0.1}
    records = [
        record(w, 2.0**e, (1 + offset) * (1 + 0.02 * (e + 7) ** 2), replicate=seed)
        for w in (32, 64)
        for e in range(-10, -3)
        for seed, offset in offsets.items()
    ]
    verdict = verdict_of(records)
    assert verdict.verdict == "transfers"
    assert verdict.noise < 1e-4
    shuffled = [replaced(r, replicate=(r.replicate + round(-math.log2(r.setting["base_lr"]))) % 3) for r in records]
    assert verdict_of(shuffled).noise > 0.05


def test_best_setting_is_lowest_on_the_curve_not_the_luckiest_run():
    losses = {-10: 1.118, -9: 1.060, -8: 1.016, -7: 1.004, -6: 0.999, -5: 1.062, -4: 1.137}
    shallow = [record(64, 2.0**e, m) for e, m in losses.items()]
    verdict = verdict_of(shallow)
    assert (verdict.optimum[64].grid, verdict.optimum[64].choice) == (2**-6, 2**-7)
    best = best_setting(shallow, axis="width", hp="base_lr")
    assert best is not None
    assert (best.setting["base_lr"], best.metric) == (2**-7, 1.004)


def test_no_vertex_where_the_points_do_not_curve_upward():
    # The paper's width 144: the loss falls ever faster towards the rate that diverges.
    losses = {-9: None, -10: 88.89, -11: 91.88, -12: 93.61, -13: 102.99}
    optimum = verdict_of([record(144, 2.0**e, m) for e, m in losses.items()]).optimum[144]
    assert (optimum.grid, optimum.fitted) == (2**-10, None)


def test_flat_losses_have_no_vertex():
    assert verdict_of(curve(64, range(-10, -3), vertex=-7, curvature=0)).optimum[64].fitted is None


def test_cliff_two_steps_away_does_not_move_the_vertex():
    records = [*curve(64, range(-9, -5), vertex=-7), record(64, 2**-5, 30.0)]
    assert math.log2(verdict_of(records).optimum[64].fitted) == pytest.approx(-7, abs=0.02)


def test_log2_columns_are_not_transformed_again():
    records = [record(w, float(e), 1 + 0.01 * (e - 0.3) ** 2) for w in (32, 64) for e in range(-6, 7, 2)]
    verdict = verdict_of(records, log2_hp=False)
    assert verdict.verdict == "transfers"
    assert verdict.optimum[32].fitted == pytest.approx(0.3, abs=0.01)


def test_setting_of_zero_is_judged_without_a_parabola():
    records = [record(w, d, m) for w in (32, 64) for d, m in ((0.0, 1.1), (0.01, 1.0), (0.1, 1.05))]
    verdict = verdict_of(records)
    assert verdict.verdict == "transfers"
    assert verdict.optimum[32].fitted is None
