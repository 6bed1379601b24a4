"""Each row of the fault bench once. `make faults` causes them as often as its gate asks; see docs/reliability.md.

Three cases run at a time, one more than the bench has lanes, because some wait for a server most of the time. Rows
with the same brief case share one run of it.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.faults import __main__ as bench
from benchmarks.faults import gate
from benchmarks.faults.harness.settings import BRIEF
from benchmarks.faults.rows import ROWS
from benchmarks.page import replace_section

SEED = 0
LONGEST = (
    *("driver-killed", "server-down-5s", "hostile-files", "secrets", "disk-full", "ledger-stays-away"),
    *("drivers-at-once", "drivers-at-once-server", "holder-stopped", "answer-dropped", "clock-steps"),
    *("earlier-ledgers", "losses", "hostile-names"),
)
"""These start first, so that short cases fill the end. The first two share one reference; the third needs none."""


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """By case, the future of its result. Only the cases of selected tests run."""
    cache = str(tmp_path_factory.mktemp("faults"))
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    selected = {test.callspec.params["row"] for test in tests}
    assert set(LONGEST) <= {row.name for row in ROWS}
    rank = {name: number for number, name in enumerate(LONGEST)}
    longest_first = sorted((row for row in ROWS if row in selected), key=lambda row: rank.get(row.name, len(rank)))
    with ThreadPoolExecutor(gate.LANES + 1) as lanes:
        futures = {}
        for row in longest_first:
            case = row.brief or row.case
            if case not in futures:
                futures[case] = lanes.submit(gate.run_case, row, SEED, row.counts.test, cache=cache, brief=True)
        yield futures


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_promise_holds_after(row, results):
    caused, error = results[row.brief or row.case].result()
    command = f"{BRIEF}=1 python -m benchmarks.faults --case {row.name} {SEED} {row.counts.test}"
    assert error is None, f"{command}\n{error}"
    assert caused == row.counts.test


def test_reliability_page_shows_the_recorded_gate_which_passed():
    tallies = {name: gate.Tally(**tally) for name, tally in json.loads(bench.DATA.read_text())["rows"].items()}
    page = bench.PAGE.read_text()
    assert replace_section(page, bench.START, bench.END, gate.table(ROWS, tallies, full=False)) == page
    assert all(gate.passed(row, tallies[row.name], full=False) for row in ROWS)


@pytest.mark.parametrize("full", [False, True], ids=["gate", "full bench"])
def test_table_shows_how_many_faults_are_still_missing(full):
    row = next(row for row in ROWS if row.counts.full > row.counts.gate > 1)
    goal = row.counts.full if full else row.counts.gate
    failure = {"seed": 3, "faults": 1, "error": ""}

    def line(**tally):
        return gate.table([row], {row.name: gate.Tally(**tally)}, full=full).splitlines()[-1]

    assert f"| none ({goal:,} still to be caused) |" in line()
    assert "| none (1 still to be caused) |" in line(caused=goal - 1)
    assert "| seed 3 (1 still to be caused) |" in line(caused=goal - 1, failures=[failure])
    assert "| none |" in line(caused=goal)


@pytest.mark.parametrize("full", [False, True], ids=["gate", "full bench"])
def test_a_row_passes_without_failures_and_only_the_full_bench_may_miss_some(full):
    row = next(row for row in ROWS if row.counts.full > row.counts.gate > 1)
    goal = row.counts.full if full else row.counts.gate
    failure = {"seed": 3, "faults": 1, "error": ""}
    assert gate.passed(row, gate.Tally(caused=goal), full=full)
    assert gate.passed(row, gate.Tally(caused=goal - 1), full=full) is full
    assert not gate.passed(row, gate.Tally(caused=goal, failures=[failure]), full=full)
