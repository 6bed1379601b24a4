"""The pages' tables follow from the committed trials, and the committed trials are those that the pages describe."""

import pytest

from benchmarks import evidence, proxy_size, recorded
from benchmarks.page import replace_section
from muxfer.analysis.transferability import judge
from muxfer.trial import Outcome, Record


@pytest.mark.parametrize(
    ("page", "start", "body"),
    [(evidence.PAGE, evidence.START, evidence.tables), (proxy_size.PAGE, proxy_size.START, proxy_size.table)],
)
def test_tables_of_the_pages_follow_from_the_data(page, start, body):
    text = page.read_text()
    assert text.partition(start)[2].partition(evidence.END)[0] == f"\n{body()}\n"
    assert replace_section(text, start, evidence.END, body()) == text


def test_proxy_study_has_every_trial():
    records = recorded.read(proxy_size.CSV)
    assert len(records) == 4 * 2 * 2 * 7 * 3
    assert len({(tuple(sorted(r.setting.items())), r.replicate) for r in records}) == len(records)
    assert {r.outcome for r in records} <= {Outcome.FINISHED, Outcome.DIVERGED}


def test_transferred_rate_meets_the_goal_at_eight_times_the_width():
    mup, _, _ = evidence.load()
    regret = next(r for r in judge(mup.records, axis="width", hp="base_lr").regret if r.from_ == evidence.SMALLEST)
    assert regret.to == 8 * evidence.SMALLEST
    assert regret.high <= evidence.GOAL


def test_conclusions_of_the_proxy_page_follow_from_its_data():
    """A smaller batch limits the proxy. An eighth of the width and a third of the steps do not: within 3 %."""
    front = proxy_size.front()
    by_batch = {batch: [c for c in front.candidates if c.task["batch_size"] == batch] for batch in (16, 64)}
    assert len(by_batch[64]) == 7
    assert all(c.upper is not None and c.upper <= 0.03 for c in by_batch[64])
    assert all(c.upper is None or c.upper > 0.03 for c in by_batch[16])
    assert front.within(0.02) is None


def test_compared_targets_have_more_seeds_than_their_sweeps():
    mup, sp, shorts = evidence.load()
    ours, theirs = evidence.ways(mup, sp, shorts)[evidence.SMALLEST]
    assert len(ours.losses) == len(min(theirs, key=lambda way: way.mean).losses) == 8
    assert {record.replicate for record in mup.records} == set(range(evidence.NUM_SEEDS))


def test_sp_targets_cost_as_much_to_tune():
    """Proxies of one size agree within 10 %, because a diverged run stopped early. Short runs cost 85 % at least."""
    for ours, (proxies, *short) in evidence.ways(*evidence.load()).values():
        assert proxies.cost == pytest.approx(ours.cost, rel=0.10)
        assert 0.85 * ours.cost < max(way.cost for way in short) <= ours.cost


def test_paired_difference_is_the_mean_ratio_with_a_t_interval():
    """0.10, 0.20 and 0.30 above: mean 0.20, deviation 0.1, t of two degrees of freedom 4.303."""
    difference = evidence.paired({0: 1.1, 1: 2.4, 2: 3.9, 5: 7.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert difference.mean == pytest.approx(0.2)
    assert difference.high - difference.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)


def test_records_are_read_back_from_their_file(tmp_path):
    kept = {"num_parameters": 87684, "train_seconds": 1.5}
    records = [
        Record(
            key="a",
            setting={"base_lr": 0.1, "width": 32.0},
            replicate=0,
            outcome=Outcome.FINISHED,
            metric=1 / 3,
            step=180,
            **kept,
        ),
        Record(
            key="b",
            setting={"base_lr": 0.2, "width": 32.0},
            replicate=0,
            outcome=Outcome.DIVERGED,
            metric=None,
            step=7,
            **kept,
        ),
    ]
    recorded.write(records, tmp_path / "trials.csv")
    back = recorded.read(tmp_path / "trials.csv")
    assert [{**record.to_dict(), "key": ""} for record in back] == [
        {**record.to_dict(), "key": ""} for record in records
    ]
