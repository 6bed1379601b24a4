"""The band that the proxies' curves predict: which steps are compared, how wide it is, and when a target leaves it."""

import json
import math

import numpy as np
import pytest

from muxfer.analysis.loss_band import (
    MIN_REPORTS,
    LossBand,
    LossCurve,
    Smoother,
    Watch,
    compared_steps,
    first_breach,
    loss_band,
    smoothed,
)
from muxfer.config.task import Training
from muxfer.training.optim import rate_multiplier


def rates(steps, *, warmup=0, schedule="constant"):
    training = Training(steps=steps, batch_size=1, warmup_steps=warmup, schedule=schedule)
    return [rate_multiplier(training, step) for step in range(steps)]


def loss_at(step, width):
    """A loss that falls with steps and with width, as diffusion losses do."""
    return (0.2 + 0.8 * (1 + step / 20) ** -0.5) * (width / 16) ** -0.05


def curve(width, *, steps=100, every=5, noise=0.0, seed=0, scale=1.0, **schedule):
    draw = np.random.default_rng([seed, width])
    points = [
        (step, scale * loss_at(step, width) * math.exp(noise * draw.standard_normal()))
        for step in range(every, steps + 1, every)
    ]
    return LossCurve(size=width, points=points, rates=rates(steps, **schedule))


def target_points(width, *, steps, **more):
    return curve(width, steps=steps, **more).points


STEPS = np.array([1, 30, 60, 100, 150, 300])


def test_constant_schedule_compares_the_same_step_up_to_the_last_proxy_step():
    compared = compared_steps(STEPS, rates(300), rates(100), 1.0)
    assert compared == pytest.approx([1, 30, 60, 100, 100, 100])


def test_longer_warm_up_shifts_the_compared_step_back():
    compared = compared_steps(STEPS, rates(300, warmup=60), rates(100, warmup=20), 1.0)
    shift = (60 - 20) / 2
    assert compared[2:4] == pytest.approx(np.array([60, 100]) - shift)
    assert compared[0] < 1


def test_longer_cosine_schedule_compares_the_same_share_of_the_steps():
    compared = compared_steps(STEPS, rates(300, schedule="cosine"), rates(100, schedule="cosine"), 1.0)
    assert compared == pytest.approx(STEPS / 3, abs=1)


def test_shorter_cosine_schedule_compares_the_same_sum_of_rates():
    own, proxy = rates(50, schedule="cosine"), rates(100, schedule="cosine")
    (compared,) = compared_steps(np.array([50]), own, proxy, 1.0)
    assert np.interp(compared, range(101), np.concatenate([[0], np.cumsum(proxy)])) == pytest.approx(sum(own))


def test_lower_base_rate_compares_the_same_sum_of_rates():
    assert compared_steps(STEPS[:3], rates(300), rates(100), 0.5) == pytest.approx(STEPS[:3] / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("steps", [40, 100, 170, 500])
@pytest.mark.parametrize("warmup", [0, 13, 40])
def test_compared_step_spent_no_more_and_had_no_lower_rate(schedule, steps, warmup):
    own, proxy = rates(steps, warmup=warmup, schedule=schedule), rates(100, warmup=20, schedule=schedule)
    places = np.arange(1, steps + 1)
    compared = compared_steps(places, own, proxy, 1.0)
    spent = np.interp(compared, range(101), np.concatenate([[0], np.cumsum(proxy)]))
    assert (spent <= np.cumsum(own) + 1e-9).all()
    assert (np.diff(compared) >= -1e-9).all()
    falling = compared > 20
    last_whole_step = np.ceil(compared[falling]).astype(int) - 1
    assert (np.array(proxy)[last_whole_step] >= np.array(own)[falling] - 1e-9).all()


def test_trend_over_width_is_extrapolated_but_never_above_the_largest_proxy():
    falling = loss_band([curve(16), curve(32)], size=64, rates=rates(100))
    largest = loss_band([curve(32)], size=64, rates=rates(100))
    assert np.allclose(np.array(falling.predicted) / largest.predicted, 2**-0.05)
    rising = [curve(16), curve(32, scale=1.2)]
    assert loss_band(rising, size=64, rates=rates(100)).predicted == pytest.approx(
        loss_band(rising[1:], size=64, rates=rates(100)).predicted
    )


def test_without_trend_only_the_largest_proxy_predicts():
    band = loss_band([curve(16), curve(32)], size=math.inf, rates=rates(100), trend=False)
    assert band == loss_band([curve(32)], size=32, rates=rates(100))


def test_proxies_larger_than_the_target_are_ignored():
    both = [curve(16), curve(64)]
    assert loss_band(both, size=32, rates=rates(100)) == loss_band(both[:1], size=32, rates=rates(100))
    assert loss_band(both[1:], size=32, rates=rates(100)) is None


def test_curve_of_few_points_gives_no_band():
    short = curve(32, steps=45, every=5)
    assert len(short.points) < 2 * MIN_REPORTS
    assert loss_band([short], size=64, rates=rates(100)) is None


def width_of(band):
    return float(np.log(np.array(band.limit) / band.predicted).max())


def test_scatter_and_differing_seeds_widen_the_band():
    quiet = loss_band([curve(32)], size=64, rates=rates(100))
    noisy = loss_band([curve(32, noise=0.05)], size=64, rates=rates(100))
    seeds = loss_band([curve(32), curve(32, scale=1.1)], size=64, rates=rates(100))
    assert width_of(quiet) < 0.06
    assert width_of(noisy) > width_of(quiet) + 0.03
    assert width_of(seeds) > width_of(quiet) + 0.1


def test_limit_keeps_its_last_value_beyond_the_proxies():
    band = loss_band([curve(32)], size=64, rates=rates(1000))
    assert band.at(105) == pytest.approx(band.at(1000))
    assert band.at(50)[1] > band.at(1000)[1]


def test_band_survives_json():
    band = loss_band([curve(16), curve(32)], size=64, rates=rates(100))
    assert LossBand.from_dict(json.loads(json.dumps(band.to_dict()))) == band


def test_smoothing_has_no_bias_at_the_start_or_after_a_gap():
    assert [loss for _, loss in smoothed([(5, 0.5), (10, 0.5), (40, 0.5)], 7.0)] == pytest.approx([0.5] * 3)
    smoother = Smoother(10.0)
    smoother.take(10, 1.0)
    assert smoother.take(1000, 0.5) == pytest.approx(0.5)


def flat_band(**changes):
    same = {"steps": (1, 1000), "predicted": (0.9, 0.9), "limit": (1.0, 1.0), "smoothing_steps": 10.0}
    return LossBand(**{**same, "patience_steps": 50, **changes})


def test_staying_above_is_a_breach_and_a_spike_is_not():
    band = flat_band()
    spiky = [(step, 3.0 if step % 100 == 0 else 0.8) for step in range(5, 1000, 5)]
    assert first_breach(band, spiky) is None
    leaving = [(step, 0.8 if step < 300 else 1.2) for step in range(5, 1000, 5)]
    breach = first_breach(band, leaving)
    assert 300 <= breach.since < 320
    assert breach.step == breach.since + 50
    assert 1.0 < breach.loss <= 1.2
    assert (breach.predicted, breach.limit) == (0.9, 1.0)


def test_breach_needs_the_minimum_number_of_reports():
    breach = first_breach(flat_band(), [(100, 1.2), (200, 1.2), (300, 1.2), (400, 1.2), (500, 1.2)])
    assert breach.step == 100 * MIN_REPORTS


def test_watch_finds_the_same_breach_as_first_breach():
    points = [(step, 0.8 if step < 300 else 1.2) for step in range(5, 500, 5)]
    watch = Watch(flat_band())
    breaches = [watch.take(step, loss) for step, loss in points]
    assert next(breach for breach in breaches if breach) == first_breach(flat_band(), points)


@pytest.mark.parametrize(("noise", "above"), [(0.01, 1.15), (0.05, 2.0)])
def test_no_healthy_target_leaves_the_band_and_every_bad_one_does(noise, above):
    alarms = detected = 0
    for seed in range(120):
        steps = (100, 200, 500)[seed % 3]
        proxies = [curve(width, noise=noise, seed=seed) for width in (16, 32, 64)]
        band = loss_band(proxies, size=128, rates=rates(steps))
        healthy = target_points(128, steps=steps, noise=noise, seed=1000 + seed)
        alarms += first_breach(band, healthy) is not None
        detected += first_breach(band, [(step, above * loss) for step, loss in healthy]) is not None
    assert alarms == 0
    assert detected == 120
