"""Candidates of a study whose truth is known: optima that move with batch and steps, and stay put in width."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from muxfer.analysis.proxy_size import describe_task, parameters_times_samples, proxy_front
from muxfer.errors import BadInput
from muxfer.report.figures.proxies import proxies_figure
from muxfer.trial import Outcome, Record

RATES = tuple(2.0**exponent for exponent in (-9, -8, -7, -6, -5, -4, -3))
COST = parameters_times_samples(64)


def study(
    *,
    moves: Callable[..., float] = lambda width, steps: 0.0,
    widths=(16, 32, 64),
    steps=(50, 100),
    rates=RATES,
    seeds=3,
    noise=0.002,
    diverges_at=math.inf,
) -> list[Record]:
    """Loss 1 + 2 % per squared octave from 2^-6, moved by `moves(width, steps)`. A seed shifts all its trials alike."""
    random_ = random.Random(7)
    shift = [random_.gauss(0, 0.05) for _ in range(seeds)]
    records = []
    for width, num_steps, rate, seed in product(widths, steps, rates, range(seeds)):
        away = math.log2(rate) + 6 - moves(width=width, steps=num_steps)
        diverged = rate >= diverges_at
        loss = (1 + 0.02 * away**2) * (1 + 4 / width) + shift[seed] + random_.gauss(0, noise)
        records.append(
            Record(
                key=f"{width}-{num_steps}-{rate}-{seed}",
                setting={"width": width, "steps": num_steps, "base_lr": rate},
                replicate=seed,
                outcome=Outcome.DIVERGED if diverged else Outcome.FINISHED,
                metric=None if diverged else loss,
                step=3 if diverged else num_steps,
                num_parameters=width**2,
            )
        )
    return records


def front_of(records, **options):
    return proxy_front(records, hp="base_lr", cost=COST, **options)


def by_task(front):
    return {(c.task["width"], c.task["steps"]): c for c in front.candidates}


def test_cost_is_of_the_whole_sweep_and_share_is_in_runs_of_the_largest_task():
    candidates = by_task(front_of(study()))
    assert candidates[16, 50].num_trials == 21
    assert candidates[16, 50].cost == 21 * 16**2 * 50 * 64
    assert candidates[16, 50].share == pytest.approx(21 * (16 / 64) ** 2 * (50 / 100))
    assert [c.cost for c in front_of(study()).candidates] == sorted(c.cost for c in candidates.values())


def test_cheapest_proxy_is_recommended_where_the_optimum_does_not_move():
    front = front_of(study())
    assert front.largest == {"width": 64, "steps": 100}
    assert front.within(0.01) is front.candidates[0]
    assert front.within(0.01).choice == 2**-6
    assert front.within(0.01).upper < 0.01
    assert "width 16, 50 steps: its 21 trials cost 0.656 runs of width 64, 100 steps" in front.why


def test_proxy_with_a_moved_optimum_has_the_known_regret_and_is_not_recommended():
    """Two octaves off: the largest task loses 2 % x 2² of its best loss, 8 % less the offset of its level."""
    front = front_of(study(moves=lambda width, steps: 2.0 if steps == 50 else 0.0))
    candidates = by_task(front)
    assert candidates[16, 50].choice == 2**-4
    assert candidates[16, 50].regret.low < 0.08 < candidates[16, 50].regret.high
    assert candidates[16, 100].choice == 2**-6
    assert front.within(0.02) is candidates[16, 100]
    assert candidates[16, 50].on_front
    assert not candidates[32, 50].on_front or candidates[32, 50].upper < candidates[16, 50].upper


def test_front_falls_with_cost_and_no_candidate_lies_below_it():
    front = front_of(study(moves=lambda width, steps: 32 / width - 0.5 * (steps == 50), widths=(8, 16, 32, 64)))
    uppers = [c.upper for c in front.front]
    assert uppers == sorted(uppers, reverse=True)
    assert len(uppers) >= 2
    for candidate in front.candidates:
        if candidate.upper is not None and not candidate.on_front:
            assert any(c.cost <= candidate.cost and c.upper <= candidate.upper for c in front.front)


def test_choice_that_diverges_at_the_largest_task_is_reported_and_not_on_the_front():
    records = study(moves=lambda width, steps: 2.0 if width == 16 else 0.0)
    records = [
        replace(r, outcome=Outcome.DIVERGED, metric=None, step=5)
        if r.setting["width"] == 64 and r.setting["base_lr"] >= 2**-4
        else r
        for r in records
    ]
    candidates = by_task(front_of(records))
    assert candidates[16, 50].diverges
    assert candidates[16, 50].upper is None
    assert candidates[16, 50].why == "the largest task diverges at base_lr 2^-4"
    assert not candidates[16, 50].on_front
    assert candidates[32, 50].on_front


def test_choice_at_the_grids_end_has_no_upper_bound():
    candidates = by_task(front_of(study(moves=lambda width, steps: 4.0 if width == 16 else 0.0)))
    assert candidates[16, 50].upper is None
    assert "the grid's end, base_lr 2^-3" in candidates[16, 50].why


def test_sureness_is_low_between_two_settings_and_high_on_a_setting():
    between = by_task(front_of(study(moves=lambda width, steps: 0.5 if width == 16 else 0.0, noise=0.01)))
    assert 0.3 < between[16, 100].sureness < 0.9
    assert between[32, 100].sureness > 0.95


def test_choice_that_other_seeds_would_not_repeat_is_not_recommended():
    """One seed and a flat curve: the smallest task hits the right setting among four that are as good to it."""
    records = study(seeds=1, widths=(16, 64), steps=(50,), noise=0.002)
    flat = [0.05, 0.004, 0.001, 0.0, 0.002, 0.003, 0.05]
    records = [
        r if r.setting["width"] == 64 else replace(r, metric=1 + flat[RATES.index(r.setting["base_lr"])])
        for r in records
    ]
    front = front_of(records)
    (candidate,) = front.candidates
    assert candidate.upper <= 0.01
    assert candidate.sureness is None or candidate.sureness < 0.5
    assert front.within(0.02) is None
    assert "other seeds may not make again" in front.why


def test_sureness_equals_the_measured_frequency_of_the_choice():
    """Against 100 sweeps of width 16 with other noise, the optimum 0.4 of the way to the next setting."""
    largest = [record for record in study(seeds=3) if record.setting == {**record.setting, "width": 64, "steps": 100}]
    random_ = random.Random(1)
    choices, probabilities = [], []
    for _ in range(100):
        small = [
            replace(
                record,
                setting={**record.setting, "width": 16},
                metric=1 + 0.02 * (math.log2(record.setting["base_lr"]) + 6.4) ** 2 + random_.gauss(0, 0.01),
            )
            for record in largest
        ]
        (candidate,) = front_of([*small, *largest]).candidates
        choices.append(candidate.choice)
        probabilities.append(candidate.sureness if candidate.choice == 2**-6 else 1 - candidate.sureness)
    assert choices.count(2**-6) / 100 == pytest.approx(sum(probabilities) / 100, abs=0.12)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], "the same task"),
        (study(widths=(16,), steps=(50,)), "the same task"),
        ([r for r in study() if r.setting["width"] < 64 or r.setting["steps"] < 100], "no task is the largest"),
        ([replace(r, num_parameters=0) for r in study()], "their cost is not known"),
        ([replace(r, setting={**r.setting, "grad_clip": r.replicate}) for r in study()], "grad_clip is tuned together"),
    ],
)
def test_missing_front_has_a_reason(records, why):
    front = front_of(records)
    assert why in front.why
    assert front.candidates == ()
    assert front.to_dict()["recommended"] == {"0.01": None, "0.02": None}


def test_size_cannot_be_the_tuned_setting():
    assert "width is a size" in proxy_front(study(), hp="width", cost=COST).why


def test_text_setting_is_bad_input():
    with pytest.raises(BadInput, match="base_lr"):
        front_of([replace(r, setting={**r.setting, "base_lr": "fast"}) for r in study()])


def test_targets_and_failed_trials_are_ignored():
    records = study()
    more = [replace(records[0], kind="target", setting={**records[0].setting, "width": 512})]
    more += [replace(records[1], outcome=Outcome.FAILED, metric=None)]
    assert front_of([*records, *more]).to_dict() == front_of(records).to_dict()


def test_one_seed_gives_wider_intervals_than_three():
    options = {"moves": lambda width, steps: 0.4, "noise": 0.02}
    one, three = (by_task(front_of(study(seeds=seeds, **options)))[32, 100] for seeds in (1, 3))
    assert one.upper > three.upper > 0


def test_unknown_noise_recommends_no_proxy():
    front = front_of(study(rates=RATES[2:5], seeds=1))
    assert {c.why for c in front.candidates} == {"nothing tells the noise"}
    assert "no proxy's regret is known" in front.why


def test_figure_marks_the_recommended_proxy_and_csv_has_every_candidate(tmp_path):
    front = front_of(study(moves=lambda width, steps: 2.0 if steps == 50 else 0.0, diverges_at=2**-4))
    png, svg, table = proxies_figure(front, tmp_path / "proxies")
    assert png.stat().st_size > 10_000
    for text in ("cheapest within 1 %", describe_task(front.largest), "95 % interval", "width 32"):
        assert text in svg.read_text()
    lines = table.read_text().splitlines()
    assert lines[0] == "width,steps,num_trials,cost,share,choice,sureness,relative,estimate,low,high,front,why"
    assert len(lines) == 1 + len(front.candidates)


def test_no_figure_without_a_front(tmp_path):
    assert proxies_figure(front_of([]), tmp_path / "proxies") == []
    assert list(tmp_path.iterdir()) == []
