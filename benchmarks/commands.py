"""The command as a user types it: the time of `--help` and of `model`, and the whole main job."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import Row, interleaved, ratios, spread

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ("-m", "muxfer", "sweep", "lr-width", "--json")


def help_(*, quick: bool) -> list[Row]:
    seconds = interleaved(
        {"help": lambda: _python("-m", "muxfer", "--help"), "bare": lambda: _python("-c", "pass")},
        rounds=5 if quick else 20,
    )
    beside = {"python_c_pass_seconds": spread(seconds["bare"])}
    return [
        Row(name="`muxfer --help`", value=spread(seconds["help"]), unit=" s", at_most=0.4, contestants=beside),
        Row(name="`muxfer --help` / `python -c pass`", value=ratios(seconds["help"], seconds["bare"]), unit="x"),
    ]


def model(*, quick: bool) -> list[Row]:
    """`muxfer model dit +size=xl_2` plans and counts 675M parameters without allocating them."""
    command = ("-m", "muxfer", "model", "dit", "+size=xl_2", "--json")
    seconds = interleaved({"model": lambda: _python(*command)}, rounds=2 if quick else 7)
    return [Row(name="`muxfer model dit +size=xl_2`", value=spread(seconds["model"]), unit=" s", at_most=5)]


def sweep(*, quick: bool) -> list[Row]:
    """`muxfer sweep lr-width` in an empty folder, then again with everything done."""
    if quick:
        return [Row(name="`muxfer sweep lr-width`", value=None, note="left out by --quick")]
    slots = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        first = json.loads(_python(*SWEEP, folder=folder))
        wall_seconds = time.perf_counter() - began
        again_seconds = []
        for _ in range(3):
            began = time.perf_counter()
            again = json.loads(_python(*SWEEP, folder=folder))
            again_seconds.append(time.perf_counter() - began)
            if again["ran"] != 0:
                raise RuntimeError(f"the second sweep ran {again['ran']} trials, expected 0")
    note = f"{first['ran']} trials on {slots} slots, one run; verdict: {first['verdict']['verdict']}"
    train_seconds = {"train_seconds": spread([first["train_seconds"]]), "wall_seconds": spread([wall_seconds])}
    return [
        Row(
            name="`muxfer sweep lr-width`, wall",
            value=spread([wall_seconds]),
            unit=" s",
            at_most=120,
            contestants={"wall_seconds_as_the_command_says": spread([first["wall_seconds"]])},
            note=note,
        ),
        Row(
            name="seconds in steps and validation / (slots x wall)",
            value=spread([first["train_seconds"] / (slots * wall_seconds)]),
            at_least=0.80,
            contestants=train_seconds,
            note="the same run",
        ),
        Row(
            name="`muxfer sweep lr-width` with everything done, wall",
            value=spread(again_seconds),
            unit=" s",
            at_most=10,
            note=f"{len(first['trials'])} trials in the ledger",
        ),
    ]


def _python(*arguments: str, folder: str | None = None) -> str:
    """Run this Python with this checkout's muxfer and a ledger in the folder. Returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout
