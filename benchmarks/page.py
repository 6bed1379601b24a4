"""What the printed pages share: facts of the machine, the table of figures, and sections that a run replaces."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.timing import Row


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures. It holds no path and no host name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    versions = {name: version(name) for name in ("torch", "ray", "mlflow")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "cpu": names[0] if names else platform.machine(),
        "python": platform.python_version(),
        **versions,
    }


def busy_cores() -> float:
    """How many cores other processes use, measured over two seconds. The figures are good only near 0."""
    return round(psutil.cpu_percent(interval=2.0) / 100 * (os.cpu_count() or 1), 2)


def facts_line(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()) + "."


def table(rows: Sequence[Row]) -> str:
    """The figures in Markdown, one line each."""
    lines = ["| what | measured | goal | met | beside it | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value}{row.unit}"
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        beside = "<br>".join(f"{name.replace('_', ' ')}: {each}" for name, each in row.contestants.items())
        lines.append(f"| {row.name} | {value} | {row.goal} | {met} | {beside} | {row.note} |")
    return "\n".join(lines)


def replace_section(page: str, start: str, end: str, body: str) -> str:
    """The page with `body` between the comments `start` and `end`."""
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{body}\n{end}{rest.partition(end)[2]}"
