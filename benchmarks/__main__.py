"""`python -m benchmarks [--quick] [--only NAME]`: measure, print, and after a full run write docs/benchmarks.*.

--quick takes few samples and leaves out the main job. A run with --quick or --only writes nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import commands
from benchmarks.page import busy_cores, facts_line, machine, table
from benchmarks.steps import step
from benchmarks.storage import ledger, resume
from benchmarks.timing import Row

DOCS = commands.ROOT / "docs"
MISSING = (
    ("GPU: reference-style step / our step; FLOP/s / matrix-product rate", "no GPU benchmark yet"),
    ("`muxfer sweep` with everything done, 1,000 trials in the ledger", "no benchmark yet"),
    ("peak memory of the target / by count", "no benchmark yet"),
)


BENCHMARKS: Mapping[str, Callable[..., list[Row]]] = {
    "help": commands.help_,
    "model": commands.model,
    "step": step,
    "resume": resume,
    "ledger": ledger,
    "sweep": commands.sweep,
}
"""In the order of the page."""


def to_markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Contestants run interleaved in one run; medians, with the smallest and largest in",
        "parentheses. On a shared machine only figures of the same row compare; `busy cores` is what others took.",
        "",
        facts_line(facts),
        "",
        table(rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, without the main job; writes nothing")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    arguments = parser.parse_args()
    facts, rows = machine(), []
    for name, benchmark in BENCHMARKS.items():
        if arguments.only in (None, name):
            print(f"{name} ...", file=sys.stderr)
            facts[f"busy_cores_before_{name}"] = busy_cores()
            rows += benchmark(quick=arguments.quick)
    facts["busy_cores_at_the_end"] = busy_cores()
    if arguments.only is None:
        rows += [Row(name=name, value=None, note=why) for name, why in MISSING]
    page = to_markdown(facts, rows)
    print(page)
    if arguments.only is None and not arguments.quick:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "benchmarks.md").write_text(page)
        document = {"machine": facts, "rows": [row.to_dict() for row in rows]}
        (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
