"""`python -m benchmarks.faults [ROW ...] [--full] [--minutes M]`: cause the faults of the table, and print the results.

Without --full each row is caused as often as the gate asks, from seed 0 on. With it the seeds continue where the last
run stopped (dist/faults.json remembers), up to the last column, and earlier failures are caused again first. A failure
is named by its seed: `python -m benchmarks.faults --case ROW SEED FAULTS` causes it again. A whole gate writes
docs/data/faults.json and the table of docs/reliability.md.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.faults.gate import Row, Tally, passed, run, table
from benchmarks.faults.harness.settings import BRIEF, ROOT
from benchmarks.faults.rows import ROWS
from benchmarks.page import machine, replace_section

DATA = ROOT / "docs" / "data" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
START, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--case", nargs=3, metavar=("ROW", "SEED", "FAULTS"))
    arguments = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if arguments.case is not None:
        name, seed, faults = arguments.case
        print(_run_here(by_name[name], int(seed), int(faults)))
        return
    if unknown := sorted(set(arguments.rows) - by_name.keys()):
        parser.error(f"unknown row {unknown[0]!r}; known: {', '.join(by_name)}")
    rows = [by_name[name] for name in arguments.rows] or list(ROWS)
    tallies = run(rows, full=arguments.full, minutes=arguments.minutes)
    print(table(rows, tallies, full=arguments.full))
    for row in rows:
        for failure in tallies[row.name].failures:
            command = f"python -m benchmarks.faults --case {row.name} {failure['seed']} {failure['faults']}"
            print(f"\n{row.name}, seed {failure['seed']}: {command}\n{failure['error']}")
    if not arguments.rows and not arguments.full:
        _write(tallies)
    sys.exit(0 if all(passed(row, tallies[row.name], full=arguments.full) for row in rows) else 1)


def _run_here(row: Row, seed: int, faults: int) -> int:
    """Run one case in this process. Returns how many faults it caused."""
    case = row.brief if BRIEF in os.environ and row.brief is not None else row.case
    with tempfile.TemporaryDirectory(prefix="muxfer-fault-") as folder:
        return case(seed, Path(folder), faults)


def _write(tallies: Mapping[str, Tally]) -> None:
    rows = {name: vars(tally) for name, tally in tallies.items()}
    DATA.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    PAGE.write_text(replace_section(PAGE.read_text(), START, END, table(ROWS, tallies, full=False)))


if __name__ == "__main__":
    main()
