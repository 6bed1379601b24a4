"""Studies of settings drawn at random: the choice is smoothed, and its regret has an interval."""

import math
import random

from muxfer.analysis.scattered import MIN_SETTINGS, is_scattered
from muxfer.analysis.transferability import bands, best_setting, inside_grid, judge
from muxfer.trial import Outcome, Record


def drawn(count=14, *, widths=(32, 64), noise=0.003, drift=0.0, seed=0, diverged=None):
    """The same random settings at every width; the loss is a bowl over log2 of the rate and the clip."""
    source = random.Random(seed)
    settings = [(source.uniform(-10, -4), source.uniform(-3, 3)) for _ in range(count)]
    records = []
    for number, width in enumerate(widths):
        for i, (lr, clip) in enumerate(settings):
            loss = 1 + 0.02 * (lr + 7 - drift * number) ** 2 + 0.005 * clip**2 + noise * source.gauss(0, 1)
            is_diverged = diverged is not None and lr > diverged
            records.append(
                Record(
                    key=f"{width}-{i}",
                    setting={"width": width, "base_lr": 2.0**lr, "grad_clip": 2.0**clip},
                    replicate=0,
                    outcome=Outcome.DIVERGED if is_diverged else Outcome.FINISHED,
                    metric=None if is_diverged else loss,
                    step=10,
                )
            )
    return records


def verdict_of(records):
    return judge(records, axis="width", hp="base_lr")


def test_random_settings_are_scattered_and_a_grid_is_not():
    assert is_scattered(drawn(), "width", "base_lr")
    grid = [
        Record(
            key=f"{w}-{e}-{c}",
            setting={"width": w, "base_lr": 2.0**e, "grad_clip": c},
            replicate=0,
            outcome=Outcome.FINISHED,
            metric=1.0,
            step=1,
        )
        for w in (32, 64)
        for e in range(-9, -4)
        for c in (0.5, 1.0, 2.0)
    ]
    assert not is_scattered(grid, "width", "base_lr")
    assert bands(drawn(), axis="width", hp="base_lr") == {}


def test_same_bowl_at_every_width_transfers():
    verdict = verdict_of(drawn(count=24))
    assert verdict.verdict == "transfers"
    assert verdict.from_ == 32
    assert verdict.regret[0].low <= verdict.regret[0].high <= 0.02
    assert verdict.drift_per_doubling["value"] is None


def test_moving_bowl_abstains():
    verdict = verdict_of(drawn(count=24, drift=3.0))
    assert verdict.verdict == "abstains"
    assert verdict.regret[0].estimate > 0.02


def test_regret_interval_covers_the_truth_in_eight_of_ten_studies():
    covered = []
    for seed in range(10):
        records = drawn(count=24, noise=0.01, drift=1.0, seed=seed)
        regret = verdict_of(records).regret[0]
        at_largest = {r.setting["base_lr"]: r.setting for r in records if r.setting["width"] == 64}
        true = {lr: true_loss({**setting, "base_lr": lr / 2}) for lr, setting in at_largest.items()}
        covered.append(regret.low <= true[regret.choice] - min(true.values()) <= regret.high)
    assert sum(covered) >= 8


def true_loss(setting):
    return 0.02 * (math.log2(setting["base_lr"]) + 7) ** 2 + 0.005 * math.log2(setting["grad_clip"]) ** 2


def test_smoothed_choice_is_better_than_the_luckiest_run():
    smoothed, luckiest = [], []
    for seed in range(10):
        records = drawn(count=24, widths=(64,), noise=0.02, seed=seed)
        best = best_setting(records, axis="width", hp="base_lr")
        assert best is not None
        smoothed.append(true_loss(best.setting))
        luckiest.append(true_loss(min(records, key=lambda r: r.metric).setting))
        assert inside_grid(records, axis="width", hp="base_lr")
    assert sum(smoothed) < 0.8 * sum(luckiest)


def test_too_few_finished_settings_abstain():
    verdict = verdict_of(drawn(count=8, diverged=-8))
    assert verdict.verdict == "abstains"
    assert f"{MIN_SETTINGS} at least are needed" in verdict.why


def test_one_width_abstains_but_has_a_best_setting():
    records = drawn(widths=(64,))
    assert "at least two values of width" in verdict_of(records).why
    assert best_setting(records, axis="width", hp="base_lr") is not None
