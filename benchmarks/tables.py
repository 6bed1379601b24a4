"""`muxfer verdict --table` on ten million rows, as a user types it: `python -m benchmarks.tables [--quick]`."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.commands import ROOT
from benchmarks.timing import Row, spread

BLOCK_ROWS = 100_000
COMMAND = ("-m", "muxfer", "verdict", "--axis", "width", "--hp", "base_lr", "--metric", "loss", "--log2-hp", "--table")


def tables(*, quick: bool) -> list[Row]:
    """Time and peak memory of the command, beside the time to read the file's bytes."""
    num_blocks = 3 if quick else 100
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        write_runs(path, num_blocks=num_blocks)
        seconds, cpu_seconds, peak_bytes, exit_code = _measured(str(path))
        if exit_code != 0:
            raise RuntimeError(f"the verdict ended with {exit_code}, expected 0: the table's optimum transfers")
        began = time.perf_counter()
        path.read_bytes()
        read_seconds = time.perf_counter() - began
        num_megabytes = path.stat().st_size / 1e6
    name = f"`muxfer verdict --table`, {num_blocks * BLOCK_ROWS:,} rows"
    note = f"{num_megabytes:.0f} MB of CSV, one run"
    contestants = {"cpu_seconds": spread([cpu_seconds]), "reading_the_bytes_seconds": spread([read_seconds])}
    return [
        Row(name=name, value=spread([seconds]), unit=" s", contestants=contestants, note=note),
        Row(name=f"{name}, peak memory", value=spread([peak_bytes / 1e9]), unit=" GB", note="the same run"),
    ]


def write_runs(path: Path, *, num_blocks: int) -> None:
    """Runs of three widths and seven rates about one optimum; no two rows are equal."""
    rng = np.random.default_rng(0)
    log2_lr = rng.integers(-13, -6, BLOCK_ROWS)
    loss = 1 + 0.015 * (log2_lr + 10) ** 2 + 0.01 * rng.normal(size=BLOCK_ROWS)
    columns = (rng.choice([64, 128, 256], BLOCK_ROWS).tolist(), (2.0**log2_lr).tolist(), loss.tolist())
    lines = "".join(f"{width},{lr},{loss:.9f}\n" for width, lr, loss in zip(*columns, strict=True))
    with path.open("w") as file:
        file.write("width,base_lr,loss\n")
        for block in range(num_blocks):
            file.write(lines.replace("\n", f"{block:02d}\n"))


def _measured(path: str) -> tuple[float, float, int, int]:
    """Wall seconds, processor seconds, peak memory in bytes and exit code of the command."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *COMMAND, path], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="300,000 rows")
    for row in tables(quick=parser.parse_args().quick):
        beside = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.contestants.items())
        print(f"{row.name}: {row.value}{row.unit} ({beside and beside + '; '}{row.note})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
