"""`python -m benchmarks.faults [ROW ...] [--full] [--minutes M]`: cause the faults of the table, and print how it went.

Without --full each row is caused as often as the gate asks, from seed 0 on. With it the seeds go on where the last run
stopped (dist/faults.json remembers), towards the last column, after those that failed. A failure is named by its seed:
`python -m benchmarks.faults --case ROW SEED FAULTS` causes it again. A whole gate writes docs/data/faults.json and the
table of docs/reliability.md.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.faults.gate import passed, run, table
from benchmarks.faults.harness.settings import BRIEF, ROOT
from benchmarks.faults.rows import ROWS
from benchmarks.page import between, machine

DATA = ROOT / "docs" / "data" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--case", nargs=3, metavar=("ROW", "SEED", "FAULTS"))
    given = parser.parse_args()
    by_name = {row.name: row for row in ROWS}
    if given.case is not None:
        name, seed, faults = given.case
        with tempfile.TemporaryDirectory(prefix="muxfer-fault-") as folder:
            row = by_name[name]
            case = row.brief if BRIEF in os.environ and row.brief is not None else row.case
            print(case(int(seed), Path(folder), int(faults)))
        return
    if unknown := sorted(set(given.rows) - by_name.keys()):
        parser.error(f"unknown row {unknown[0]!r}; known: {', '.join(by_name)}")
    rows = [by_name[name] for name in given.rows] or list(ROWS)
    tallies = run(rows, full=given.full, minutes=given.minutes)
    print(table(rows, tallies, full=given.full))
    for row in rows:
        for failure in tallies[row.name].failures:
            again = f"python -m benchmarks.faults --case {row.name} {failure['seed']} {failure['faults']}"
            print(f"\n{row.name}, seed {failure['seed']}: {again}\n{failure['told']}")
    if not given.rows and not given.full:
        DATA.write_text(json.dumps({"machine": machine(), "rows": {n: vars(t) for n, t in tallies.items()}}, indent=1))
        PAGE.write_text(between(PAGE.read_text(), "faults", table(rows, tallies, full=False)))
    sys.exit(0 if all(passed(row, tallies[row.name], full=given.full) for row in rows) else 1)


if __name__ == "__main__":
    main()
