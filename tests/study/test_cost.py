"""Costs are sums over all that a search trains, and no proposal ever exceeds its budget."""

import random
import re

import pytest

from muxfer.config.settings import with_setting
from muxfer.errors import BadInput
from muxfer.study.cost import LEAST_SETTINGS, SIZES, parts, propose, samples_seen, training_flops, tuning_ratio
from muxfer.study.search import grid
from muxfer.study.trials import make_trial


def drawn_shares(rng):
    """Shares of a target by width, growing as a model's cost does."""
    unit = rng.choice([16, 64, 72])
    target = unit * rng.choice([16, 40])
    widths = sorted(rng.sample(range(1, target // unit), rng.randint(1, 8)))
    return {unit * heads: (unit * heads / target) ** 2 * rng.uniform(0.9, 1.5) for heads in widths}


def proposed(*args, **kwargs):
    """What is proposed, or why nothing is."""
    try:
        return propose(*args, **kwargs), None
    except BadInput as error:
        return [], str(error)


def test_training_costs_a_forward_pass_and_twice_that_backwards():
    assert training_flops(10, samples=7) == 2 * 3 * 10 * 7


def test_equation_1_gives_the_papers_shares():
    assert tuning_ratio([(0.04e9, 5 * 5)], (0.61e9, 30)) == pytest.approx(0.055, abs=5e-4)
    mmdit = tuning_ratio([(0.18e9, 80 * 30_000 + 5 * 100_000)], (18e9, 200_000))
    assert mmdit == pytest.approx(0.145, abs=5e-4)
    assert mmdit / 5 == pytest.approx(0.029, abs=5e-4)


def test_the_parts_of_a_grid_hold_each_of_its_trials_once(make_config):
    config = make_config(
        "search.width=[32,64]", "+search.steps=[90,180]", "search.base_lr=[1e-3,2e-3,3e-3]", "search.seeds=2"
    )
    found = parts(config.task, config.search, grid(config.search))
    assert sum(part.trials for part in found) == 2 * 2 * 3 * 2
    assert {(p.task.model.width, p.task.training.steps) for p in found} == {(32, 90), (32, 180), (64, 90), (64, 180)}
    assert {part.trials for part in found} == {6}
    assert all(set(part.sizes) <= set(SIZES) for part in found)


def test_a_drawn_search_counts_its_settings_and_its_finalists(make_config):
    config = make_config(
        *("search.sampler=random", "+search.num_settings=7", "search.base_lr={log_uniform:[1e-4,1e-2]}"),
        *("search.width=[32,64]", "search.seeds=3", "+search.finalists=2", "+search.finalist_steps=500"),
    )
    *searched, last = parts(config.task, config.search, grid(config.search))
    assert [part.trials for part in searched] == [21, 21]
    assert (last.trials, last.task.model.width, last.task.training.steps) == (6, 64, 500)


def test_a_size_that_is_drawn_counts_at_its_largest(make_config):
    config = make_config(
        *("search.sampler=random", "+search.num_settings=5", "search.base_lr={uniform:[1e-4,1e-2]}"),
        *("search.width=[32]", "+search.batch_size={integer:[4,7],log2:true}"),
    )
    [part] = parts(config.task, config.search, grid(config.search))
    assert samples_seen(part.task) == 128 * config.training.steps


def test_warm_up_never_stands_in_the_way_of_a_count(make_config):
    config = make_config("+search.steps=[5,50]", "search.axis=steps", "training.warmup_steps=40", "training.steps=50")
    assert {part.task.training.steps for part in parts(config.task, config.search, grid(config.search))} == {5, 50}


@pytest.mark.parametrize("seed", range(40))
def test_proposals_keep_to_the_budget_and_come_best_first(seed):
    rng = random.Random(seed)
    target_steps, budget = rng.randint(1000, 10**6), 10 ** rng.uniform(-3, -0.01)
    shares = {width: share / target_steps for width, share in drawn_shares(rng).items()}
    lengths = sorted({round(target_steps * rng.uniform(0.05, 1)) for _ in range(5)})
    final_steps = rng.choice([0, target_steps // 5])
    given = {"wanted": rng.randint(5, 30), "seeds": rng.randint(1, 3), "final_steps": final_steps}
    found, refused = proposed(shares, lengths, budget=budget, **given)
    if refused is not None:
        enough = re.search(r"give --budget (\S+),", refused)
        if enough is None:
            assert "larger target" in refused
            return
        assert float(enough.group(1)) > budget
        budget = float(enough.group(1))
        found = propose(shares, lengths, budget=budget, **given)
    assert found
    for one in found:
        steps = one.settings * one.steps + given["final_steps"]
        assert one.share == pytest.approx(given["seeds"] * shares[one.width] * steps)
        assert one.share <= budget
        assert LEAST_SETTINGS <= one.settings <= given["wanted"]
        assert one.steps in lengths
    assert found == sorted(found, key=lambda one: (-one.settings, -one.width, -one.steps))
    assert len({one.width for one in found}) == len(found)


def test_a_larger_budget_buys_no_smaller_proxy():
    shares = {144: 1e-6 / 64, 288: 1e-6 / 16, 576: 1e-6 / 4}
    budgets = [0.02, 0.06, 0.2, 0.4, 0.9]
    best = [propose(shares, [150_000, 400_000], budget=budget, wanted=7, seeds=1)[0] for budget in budgets]
    assert [(one.settings, one.width) for one in best] == sorted((one.settings, one.width) for one in best)
    assert best[0].width < best[-1].width


def test_without_a_smaller_proxy_or_a_length_nothing_is_proposed():
    for shares, lengths in (({}, [10]), ({64: 0.01}, [])):
        with pytest.raises(BadInput, match="larger target"):
            propose(shares, lengths, budget=0.9, wanted=5, seeds=1)


def test_the_tuning_ratio_is_parameters_times_samples_over_the_targets():
    """PixArt-α's proxies: five trials of 0.04B parameters and 5 epochs for a target of 0.61B and 30 epochs, 5.5 %."""
    assert tuning_ratio([(40, 5)] * 5, (610, 30)) == pytest.approx(0.055, abs=0.0005)
    assert training_flops(10.0, samples=3) == 180.0


def test_a_longer_and_a_wider_trial_cost_more(make_config):
    task = make_config().task
    costs = [
        make_trial(with_setting(task, setting), setting, replicate=0, fingerprint="x").cost_flops
        for setting in ({"width": 64}, {"width": 128}, {"width": 128, "steps": 400})
    ]
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[1]
