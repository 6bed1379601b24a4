"""`python -m benchmarks.proxy_size`: how small may the proxy be, on digits, from the trials of sweeps/proxy-size.yaml.

It reads docs/data/proxy-size.csv and writes the table of docs/proxy-size.md and its picture. `--export FOLDER` takes
the trials from the ledger in FOLDER first.
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import recorded
from benchmarks.page import replace_section
from muxfer.analysis.cells import percent, shown
from muxfer.analysis.proxy_size import Candidate, ProxyFront, describe_task, parameters_times_samples, proxy_front
from muxfer.files import replace_file
from muxfer.report.figures.proxies import proxies_figure

CSV = recorded.DATA / "proxy-size.csv"
PAGE = recorded.DATA.parent / "proxy-size.md"
PICTURE = recorded.DATA.parent / "img" / "proxy-size.png"
START, END = "<!-- written by python -m benchmarks.proxy_size -->", "<!-- end -->"
BATCH_SIZE = 64
"""For studies that do not vary it. This one does."""


def front() -> ProxyFront:
    return proxy_front(recorded.read(CSV), hp="base_lr", cost=parameters_times_samples(BATCH_SIZE))


def table() -> str:
    result = front()
    largest = describe_task(result.largest)
    num_trials = sum(candidate.num_trials for candidate in result.candidates)
    per_task = result.candidates[0].num_trials
    names = [name.replace("_", " ") for name in result.axes]
    lines = [
        f"{num_trials + per_task} trials, {per_task} a task; the largest task is {largest}. A regret"
        " is what that task loses, relatively, by the choice; a cost of 1 is one run of it, by parameters x samples.",
        "",
        f"| {' | '.join(names)} | cost of the sweep | choice | made again by other seeds | regret, measured |"
        " fitted (95 % interval) | on the front |",
        "|" + "---|" * (len(names) + 6),
        *(_row(candidate, result) for candidate in result.candidates),
        "",
        f"{result.why[0].upper()}{result.why[1:]}.",
    ]
    return "\n".join(lines)


def _row(candidate: Candidate, result: ProxyFront) -> str:
    sizes = " | ".join(f"{candidate.task[name]:g}" for name in result.axes)
    sure = "unknown" if candidate.sureness is None else f"{100 * candidate.sureness:.0f} %"
    choice = "none" if candidate.choice is None else _rate(candidate.choice)
    regret = candidate.regret
    measured = "" if regret is None or regret.relative is None else percent(regret.relative)
    fitted = candidate.why
    if regret is not None and regret.estimate is not None and regret.low is not None and regret.high is not None:
        interval = f"{percent(regret.estimate)} ({100 * regret.low:.2f} to {100 * regret.high:.2f})"
        fitted = f"{interval}; {candidate.why}" if candidate.why else interval
    on_front = "yes" if candidate.on_front else ""
    return f"| {sizes} | {candidate.share:.3g} | {choice} | {sure} | {measured} | {fitted} | {on_front} |"


def _rate(value: float) -> str:
    """The rate in half powers of two, as in the grid, and as a number."""
    exponent = round(2 * math.log2(value)) / 2
    return f"2^{exponent:g} ({value:.3g})" if math.isclose(2**exponent, value, rel_tol=1e-6) else shown(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy_size", description=__doc__)
    parser.add_argument("--export", metavar="FOLDER", help="where the sweep's ledger is")
    request = parser.parse_args()
    if request.export:
        os.chdir(request.export)
        recorded.export("proxy-size", (), CSV)
    with tempfile.TemporaryDirectory() as folder:
        png, *_ = proxies_figure(front(), Path(folder) / "proxy-size")
        replace_file(PICTURE, png.read_bytes())
    PAGE.write_text(replace_section(PAGE.read_text(), START, END, table()))
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
