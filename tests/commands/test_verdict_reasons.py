"""The sentence of a verdict agrees with its numbers: each table is a small one that was once explained wrongly."""

from muxfer.commands.verdict_table import verdict
from tests.typed import ROOT

RUNS = ROOT / "tests" / "tables" / "runs"


def result(name, **more):
    return verdict(str(RUNS / f"{name}.csv"), **{"axis": "width", "hp": "lr", "metric": "loss"} | more)


def test_an_optimum_that_moves_and_costs_little_transfers_and_the_sentence_says_how_far_it_moves():
    data = result("moves_but_costs_little").data
    assert data["verdict"] == "transfers"
    assert max(regret["high"] for regret in data["regret"]) < 0.02
    assert "it moves by" in data["why"]
    assert "from width" not in data["why"]


def test_an_optimum_that_never_ran_at_the_largest_width_is_the_reason():
    data = result("untried_at_the_largest").data
    assert data["verdict"] == "abstains"
    assert data["why"].startswith("the optimum of width 128 (lr -7.5) has no result at width 256: run it there")


def test_three_seeds_tell_the_noise_where_no_curve_can_be_fitted():
    shown = result("steep_three_seeds")
    assert 0 < shown.data["noise"] < 0.005
    assert "one seed" not in shown.text
    assert shown.data["verdict"] == "abstains"
    assert "is the grid's upper end (lr -6): extend the grid above it" in shown.data["why"]


def test_an_interval_ends_among_the_values_tried():
    shown = result("flat_to_the_left", log2_hp=True)
    ends = [end for optimum in shown.data["optimum"].values() for end in (optimum["low"], optimum["high"])]
    assert all(end is None or 2**-12 <= end <= 2**-4 for end in ends)


def test_a_cell_that_has_not_run_is_named_and_is_no_drift():
    data = result("one_cell_not_run").data
    assert data["verdict"] == "abstains"
    assert data["why"].startswith("lr -7, beside the optimum, has no result at width 64: run it there")


def test_the_choice_of_a_steep_curve_with_one_seed_is_its_lowest_cell():
    """-7 is best at every width by 2.8 to 3.7 %; a parabola does not fit, and its misfit is no noise."""
    data = result("steep_one_seed").data
    assert [optimum["choice"] for optimum in data["optimum"].values()] == [-7, -7, -7]
    assert data["noise"] < 0.01
