"""Scaling laws fitted to tables whose truth is known: the paper's laws, Chinchilla's surface, and broken tables."""

import json
import math

import numpy as np
import pytest

from muxfer.analysis.laws.isoflop_points import MAX_POINTS, Points
from muxfer.analysis.laws.law_comparison import compare
from muxfer.analysis.laws.parametric_law import ParametricLaw, fit_parametric
from muxfer.analysis.laws.power_law import PowerLaw
from muxfer.analysis.laws.scaling_law import fit_isoflop, predict
from muxfer.errors import BadInput

BUDGETS = (1e17, 3e17, 6e17, 1e18, 3e18, 6e18)
PAPER = {"params": (0.0009, 0.5681), "tokens": (186.8535, 0.4319), "loss": (2.3943, -0.0273), "fid": (2.2566e6, -0.234)}
"""Coefficient and exponent of C: Liang et al. 2024. Their 6 N D is 1.009 C, so tokens are drawn by their own law."""


def law(name, flops, laws=PAPER):
    coefficient, exponent = laws[name]
    return coefficient * flops**exponent


def table(*, noise=0.0, num_sizes=7, half=1.0, curvature=0.05, shift=0.0, seed=0, budgets=BUDGETS, laws=PAPER):
    """`num_sizes` sizes a budget over `half` e-folds on each side of its optimum plus `shift`; a parabola in log N."""
    rng = np.random.default_rng(seed)
    rows = []
    for flops in budgets:
        for x in np.linspace(-half, half, num_sizes) + shift:
            bend = 1 + curvature * x**2
            loss, fid = (
                law(name, flops, laws) * bend * (1 + noise * rng.standard_normal()) for name in ("loss", "fid")
            )
            sizes = (law("params", flops, laws) * math.exp(x), law("tokens", flops, laws) * math.exp(-x))
            rows.append((flops, *sizes, loss, fid))
    return Points(**dict(zip(("flops", "params", "tokens", "loss", "fid"), np.array(rows).T, strict=True)))


def with_columns(points, **columns):
    own = {name: getattr(points, name) for name in ("flops", "params", "tokens", "loss", "fid")}
    return Points(**{**own, **columns})


@pytest.mark.parametrize(
    "shape",
    [
        {"num_sizes": 5, "half": 0.7, "curvature": 0.01},
        {"num_sizes": 7},
        {"num_sizes": 15, "half": 1.6, "curvature": 0.3},
        {"num_sizes": 9, "curvature": 0.1, "shift": 0.4},
        {"num_sizes": 6, "half": 2.0, "curvature": 1.0},
    ],
)
def test_fit_recovers_the_papers_laws_and_predicts_its_target(shape):
    fit = fit_isoflop(table(noise=1e-5, **shape))
    for name, (_, exponent) in PAPER.items():
        assert fit.laws[name].exponent.value == pytest.approx(exponent, abs=0.002)
    assert predict(fit, 1.5e21).params.value == pytest.approx(964.7e6, rel=0.02)
    assert predict(fit, 1.5e21).tokens.value == pytest.approx(law("tokens", 1.5e21), rel=0.02)


def test_without_noise_coefficients_and_optima_are_exact():
    fit = fit_isoflop(table())
    for name, (coefficient, exponent) in PAPER.items():
        assert fit.laws[name].coefficient.value == pytest.approx(coefficient, rel=1e-6)
        assert fit.laws[name].exponent.value == pytest.approx(exponent, abs=1e-9)
    for budget in fit.budgets:
        assert budget.params.value == pytest.approx(law("params", budget.flops), rel=1e-8)
        assert budget.fid == pytest.approx(law("fid", budget.flops), rel=1e-8)


def test_intervals_cover_the_truth():
    """50 studies: correct 95 % intervals would miss 6 or more of 50 once in 25 such tests."""
    num_studies, missed = 50, {"params": 0, "loss": 0, "prediction": 0}
    for seed in range(num_studies):
        fit = fit_isoflop(table(noise=2e-4, seed=seed, num_sizes=6))
        for name in ("params", "loss"):
            exponent = fit.laws[name].exponent
            missed[name] += not exponent.low <= PAPER[name][1] <= exponent.high
        predicted = fit.laws["params"].at(1.5e21)
        missed["prediction"] += not predicted.low <= law("params", 1.5e21) <= predicted.high
    assert max(missed.values()) < 6
    assert fit.laws["params"].exponent.high - fit.laws["params"].exponent.low < 0.02, "the intervals are narrow too"


def chinchilla(noise=0.0):
    """L = 1.69 + 406.4/N^0.34 + 410.7/D^0.28 on sizes that lie lopsided about the optima."""
    flops = np.repeat([6e18, 3e19, 1e20, 6e20], 9)
    params = 0.3 * np.sqrt(flops / 6) * np.tile(np.exp(np.linspace(-1.8, 1.8, 9)), 4)
    tokens = flops / 6 / params
    loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
    loss = loss * (1 + noise * np.random.default_rng(0).standard_normal(len(loss)))
    return Points(flops=flops, params=params, tokens=tokens, loss=loss)


def test_lopsided_curves_get_a_higher_degree_and_the_right_exponents():
    fit = fit_isoflop(chinchilla(1e-5))
    assert fit.degree > 2
    assert fit.laws["params"].exponent.value == pytest.approx(0.28 / 0.62, abs=0.002)
    assert fit_isoflop(table(noise=1e-3, num_sizes=9)).degree == 2


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_fit_recovers_the_parametric_law(noise):
    fit = fit_parametric(chinchilla(noise))
    assert isinstance(fit, ParametricLaw)
    assert (fit.E, fit.a, fit.b) == pytest.approx((1.69, 0.34, 0.28), rel=0.01)
    assert fit.params_exponent == pytest.approx(0.28 / 0.62, abs=0.002)
    params, tokens, loss = fit.optimum(1e22)
    assert 6 * params * tokens == pytest.approx(1e22)
    for factor in (0.9, 1.1):
        assert fit.loss(params * factor, tokens / factor) > loss


def test_one_bad_run_moves_the_parametric_law_little():
    points = chinchilla(1e-4)
    points.loss[4] *= 1.2
    fit = fit_parametric(points)
    assert (fit.E, fit.a, fit.b) == pytest.approx((1.69, 0.34, 0.28), rel=0.02)


def test_few_points_give_no_parametric_law():
    assert "at least" in fit_parametric(chinchilla()[:7])


def test_budget_with_its_optimum_outside_its_sizes_is_left_out_with_a_reason():
    points = table(noise=1e-5)
    cut = (points.flops > BUDGETS[0]) | (points.params > 1.05 * law("params", BUDGETS[0]))
    fit = fit_isoflop(points[cut])
    assert fit.budgets[0].why == "the loss is lowest at the smallest size: add smaller ones"
    assert len(fit.kept) == 5
    assert fit.laws["params"].exponent.value == pytest.approx(0.5681, abs=0.002)


def test_budget_that_does_not_curve_beyond_the_noise_is_left_out():
    fit = fit_isoflop(table(noise=0.05, curvature=0.001, seed=3))
    assert "does not curve" in " ".join(budget.why for budget in fit.budgets)
    assert fit.laws == {}


def test_fewer_than_three_optima_give_no_law_and_no_prediction():
    points = table(noise=1e-5)
    falling = points[points.params <= 0.9 * np.array([law("params", c) for c in points.flops])]
    fit = fit_isoflop(falling)
    assert fit.laws == {}
    assert "0 of 6 budgets have an optimum, a law needs 3" in fit.why
    with pytest.raises(BadInput, match="nothing can be predicted"):
        predict(fit, 1e20)


def test_flops_rounded_to_whole_steps_are_one_budget():
    points = table()
    rounded = points.flops * (1 + 0.004 * np.sin(np.arange(len(points))))
    fit = fit_isoflop(with_columns(points, flops=rounded))
    assert [len(budget.points) for budget in fit.budgets] == [7] * 6


def test_one_row_a_budget_is_a_table_of_optima():
    points = table(noise=1e-5, num_sizes=1, half=0.0)
    fit = fit_isoflop(points)
    assert fit.laws["params"].exponent.value == pytest.approx(0.5681, abs=0.002)
    assert fit.degree is None
    assert "taken for the optima" in fit.notes[0]


def test_row_order_and_duplicate_rows_do_not_change_the_laws():
    points = table(noise=1e-3)
    order = np.random.default_rng(0).permutation(len(points))
    shuffled = fit_isoflop(points[np.concatenate([order, order[:5]])])
    once = fit_isoflop(points)
    for name in PAPER:
        assert shuffled.laws[name].to_dict() == once.laws[name].to_dict()
    assert shuffled.notes == ("5 rows stand twice and count once",)


def test_optima_that_scatter_more_than_their_noise_widen_the_interval():
    points = table(noise=1e-5)
    factor = np.exp(0.2 * np.sin(np.arange(6) ** 2.0))[np.searchsorted(BUDGETS, points.flops)]
    moved = fit_isoflop(with_columns(points, params=points.params * factor))
    calm = fit_isoflop(points)
    wide, narrow = (fit.laws["params"].exponent for fit in (moved, calm))
    assert wide.high - wide.low > 100 * (narrow.high - narrow.low)
    assert wide.low < 0.5681 < wide.high


def test_diverged_run_is_left_out_with_a_note():
    points = table(noise=1e-5)
    points.loss[[0, 8]] = math.nan
    fit = fit_isoflop(points)
    assert fit.notes == ("2 of 42 rows have no finite loss and shape nothing",)
    assert fit.laws["params"].exponent.value == pytest.approx(0.5681, abs=0.002)


BAD = {
    "a size of zero": (lambda: with_columns(table(), params=np.zeros(42)), "column params, row 1 holds 0"),
    "no tokens": (lambda: with_columns(table(), tokens=np.full(42, math.nan)), "column tokens, row 1 holds nan"),
    "a loss below zero": (lambda: with_columns(table(), loss=-table().loss), "losses above 0"),
    "every step of every run": (lambda: table()[np.zeros(MAX_POINTS + 1, dtype=int)], "one row a trained model"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_table_is_refused_in_one_line(case):
    make, message = BAD[case]
    with pytest.raises(BadInput, match=message) as error:
        fit_isoflop(make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        (table(budgets=BUDGETS[:2]), "2 budgets (1e+17, 3e+17 FLOPs), a law needs 3: add others"),
        (table(budgets=BUDGETS[:1], num_sizes=1), "1 budget (1e+17 FLOPs), a law needs 3: add others"),
        (with_columns(table(), loss=np.full(42, math.nan)), "none of the 42 runs has a finite loss"),
        (table()[:0], "none of the 0 runs has a finite loss"),
    ],
)
def test_too_few_budgets_give_no_laws_and_a_reason(points, why):
    fit = fit_isoflop(points)
    assert (fit.laws, fit.why) == ({}, why)


def test_law_survives_json_and_its_interval_holds_its_value():
    fit = fit_isoflop(table(noise=1e-3))
    laws = json.loads(json.dumps({name: law.to_dict() for name, law in fit.laws.items()}, allow_nan=False))
    for part in laws.values():
        assert part["low"] <= part["exponent"] <= part["high"]
        assert part["coefficient_low"] <= part["coefficient"] <= part["coefficient_high"]


def test_three_values_without_known_noise_get_students_t():
    x = np.log([1.0, 10.0, 100.0])
    exact = PowerLaw(log_flops=x, log_values=2 + 0.5 * x, noise=None).exponent
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-9)
    scattered = PowerLaw(log_flops=x, log_values=2 + 0.5 * x + np.array([0.1, -0.2, 0.1]), noise=None).exponent
    # scatter 0.06 with 1 degree of freedom over the sum of squares of x; t is 12.706
    assert scattered.high - scattered.value == pytest.approx(12.7062 * math.sqrt(0.06 / (2 * math.log(10) ** 2)), 1e-4)


BETTER = {**PAPER, "params": (0.003, 0.54), "tokens": (1 / 0.018, 0.46), "loss": (2.9, -0.0385)}


def test_better_model_gains_more_from_compute_and_asks_for_more_data():
    fits = [fit_isoflop(table(noise=2e-4, laws=laws, seed=seed)) for seed, laws in enumerate((BETTER, PAPER))]
    compared = compare(*fits, names=("new", "old"), differ="model")
    assert compared.flops == 6e18
    assert compared.exponents["params"].value == pytest.approx(0.54 - 0.5681, abs=0.01)
    assert compared.loss_ratio.value == pytest.approx(law("loss", 6e18, BETTER) / law("loss", 6e18), rel=1e-3)
    first, second, third = compared.readings()
    assert "new has the lower loss" in first
    assert second.startswith("new gains more from compute")
    assert third.startswith("new is the better model")
    as_data = compare(*fits, names=("new", "old"), differ="data").readings()
    assert "lower loss" not in " ".join(as_data), "losses on different data are not on one scale"
    assert as_data[1].startswith("old is the better data")


def test_equal_laws_are_called_open():
    fits = [fit_isoflop(table(noise=2e-4, seed=seed)) for seed in (0, 1)]
    readings = " ".join(compare(*fits, names=("one", "other")).readings())
    for words in ("the losses are level", "neither gains more", "open as models", "open as data"):
        assert words in readings
