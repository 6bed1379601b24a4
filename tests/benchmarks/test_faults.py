"""Each row of the fault bench once. `make faults` causes them as often as its gate asks; see docs/reliability.md.

They go three at a time, one more than the bench has lanes of work, for some wait for a server most of the time. Rows
that have the same brief case in common share its one run.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.faults import __main__ as bench
from benchmarks.faults import gate
from benchmarks.faults.harness.settings import BRIEF
from benchmarks.faults.rows import ROWS
from benchmarks.page import between

SEED = 0
LONGEST = (
    *("driver-killed", "server-down-5s", "hostile-files", "secrets", "disk-full", "ledger-stays-away"),
    *("drivers-at-once", "drivers-at-once-server", "holder-stopped", "answer-dropped", "clock-steps"),
    *("earlier-ledgers", "losses", "hostile-names"),
)
"""Begun first, so that the short ones fill the end. The first two share one reference; the third needs none."""


@pytest.fixture(scope="module")
def told(request, tmp_path_factory):
    """By case what it said, of the rows that were asked for; what is begun goes on while others are looked at."""
    cache = str(tmp_path_factory.mktemp("faults"))
    tests = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {test.callspec.params["row"] for test in tests}
    assert set(LONGEST) <= {row.name for row in ROWS}
    rank = {name: number for number, name in enumerate(LONGEST)}
    longest_first = sorted((row for row in ROWS if row in asked), key=lambda row: rank.get(row.name, len(rank)))
    with ThreadPoolExecutor(gate.LANES + 1) as lanes:
        begun = {}
        for row in longest_first:
            case = row.brief or row.case
            if case not in begun:
                begun[case] = lanes.submit(gate.run_case, row, SEED, row.test, cache=cache, brief=True)
        yield begun


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_promise_holds_after(row, told):
    caused, wrong = told[row.brief or row.case].result()
    again = f"{BRIEF}=1 python -m benchmarks.faults --case {row.name} {SEED} {row.test}"
    assert wrong is None, f"{again}\n{wrong}"
    assert caused == row.test


def test_the_page_shows_what_the_gate_printed():
    tallies = {name: gate.Tally(**tally) for name, tally in json.loads(bench.DATA.read_text())["rows"].items()}
    assert between(bench.PAGE.read_text(), "faults", gate.table(ROWS, tallies, full=False)) == bench.PAGE.read_text()
    assert all(gate.passed(row, tallies[row.name], full=False) for row in ROWS)


def test_the_table_says_what_is_still_to_be_caused():
    check_table(full=False)
    check_table(full=True)


def check_table(*, full):
    row = next(row for row in ROWS if row.full > row.gate > 1)
    asked = row.full if full else row.gate

    def told(**tally):
        return gate.table([row], {row.name: gate.Tally(**tally)}, full=full).splitlines()[-1]

    assert f"| none ({asked:,} still to be caused) |" in told()
    assert "| none (1 still to be caused) |" in told(caused=asked - 1)
    failure = {"seed": 3, "faults": 1, "told": ""}
    assert "| seed 3 (1 still to be caused) |" in told(caused=asked - 1, failures=[failure])
    assert "| none |" in told(caused=asked)
    assert gate.passed(row, gate.Tally(caused=asked - 1), full=full) is full, "the full bench goes on next time"
    assert not gate.passed(row, gate.Tally(caused=asked, failures=[failure]), full=full)
