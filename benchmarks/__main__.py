"""`python -m benchmarks [--quick] [--only NAME]`: measure, print, and after a full run write docs/benchmarks.*.

--quick takes few samples and leaves the main job out; with it, or with --only, nothing is written.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks import commands
from benchmarks.page import busy_cores, machine, table, told
from benchmarks.timing import Row

DOCS = commands.ROOT / "docs"
MISSING = (
    ("GPU: reference-style step / our step; FLOP/s / matrix-product rate", "no GPU benchmark yet"),
    ("`muxfer sweep` with everything done, 1,000 trials in the ledger", "no benchmark yet"),
    ("peak memory of the target / by count", "no benchmark yet"),
)


def late(module: str, name: str) -> Callable[..., list[Row]]:
    """A benchmark whose module brings torch or MLflow, imported when it is its turn."""
    return lambda **given: getattr(import_module(f"benchmarks.{module}"), name)(**given)


BENCHMARKS: Mapping[str, Callable[..., list[Row]]] = {
    "help": commands.help_,
    "model": commands.model,
    "step": late("steps", "step"),
    "resume": late("storage", "resume"),
    "ledger": late("storage", "ledger"),
    "sweep": commands.sweep,
}


def to_markdown(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Contestants run interleaved in one run; medians, with the smallest and largest in",
        "parentheses. On a shared machine only figures of the same row compare; `busy cores` is what others took.",
        "",
        told(facts),
        "",
        table(rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, without the main job; writes nothing")
    parser.add_argument("--only", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    request = parser.parse_args()
    facts, rows = machine(), []
    for name, benchmark in BENCHMARKS.items():
        if request.only in (None, name):
            print(f"{name} ...", file=sys.stderr)
            facts[f"busy_cores_before_{name}"] = busy_cores()
            rows += benchmark(quick=request.quick)
    facts["busy_cores_at_the_end"] = busy_cores()
    if request.only is None:
        rows += [Row(name=name, value=None, note=why) for name, why in MISSING]
    page = to_markdown(facts, rows)
    print(page)
    if request.only is None and not request.quick:
        DOCS.mkdir(exist_ok=True)
        (DOCS / "benchmarks.md").write_text(page)
        document = {"machine": facts, "rows": [row.to_dict() for row in rows]}
        (DOCS / "benchmarks.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
