"""The command as a user types it: the time of `--help` and of `model`, and the whole main job."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import Row, interleaved, ratios, spread

ROOT = Path(__file__).resolve().parents[1]


def help_(*, quick: bool) -> list[Row]:
    contestants = {"help": lambda: python("-m", "muxfer", "--help"), "bare": lambda: python("-c", "pass")}
    seconds = interleaved(contestants, rounds=5 if quick else 20)
    beside = {"python_c_pass_seconds": spread(seconds["bare"])}
    return [
        Row(name="`muxfer --help`", value=spread(seconds["help"]), unit=" s", at_most=0.4, contestants=beside),
        Row(name="`muxfer --help` / `python -c pass`", value=ratios(seconds["help"], seconds["bare"]), unit="x"),
    ]


def model(*, quick: bool) -> list[Row]:
    """`muxfer model dit +size=xl_2` plans and counts 675M parameters without allocating them."""
    command = ("-m", "muxfer", "model", "dit", "+size=xl_2", "--json")
    seconds = interleaved({"model": lambda: python(*command)}, rounds=2 if quick else 7)
    return [Row(name="`muxfer model dit +size=xl_2`", value=spread(seconds["model"]), unit=" s", at_most=5)]


def sweep(*, quick: bool) -> list[Row]:
    """`muxfer sweep lr-width` in an empty folder, then again with everything done."""
    if quick:
        return [Row(name="`muxfer sweep lr-width`", value=None, note="left out by --quick")]
    slots = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        first, wall_seconds = muxfer(folder, "sweep", "lr-width")
        again_seconds = []
        for _ in range(3):
            again, again_wall_seconds = muxfer(folder, "sweep", "lr-width")
            again_seconds.append(again_wall_seconds)
            if again["ran"] != 0:
                raise RuntimeError(f"the second sweep ran {again['ran']} trials, expected 0")
    note = f"{first['ran']} trials on {slots} slots, one run; verdict: {first['verdict']['verdict']}"
    said = {"wall_seconds_as_the_command_says": spread([first["wall_seconds"]])}
    seconds = {"train_seconds": spread([first["train_seconds"]]), "wall_seconds": spread([wall_seconds])}
    share = spread([first["train_seconds"] / (slots * wall_seconds)])
    known = f"{len(first['trials'])} trials in the ledger"
    name = "`muxfer sweep lr-width`"
    busy = "seconds in steps and validation / (slots x wall)"
    return [
        Row(name=f"{name}, wall", value=spread([wall_seconds]), unit=" s", at_most=120, contestants=said, note=note),
        Row(name=busy, value=share, at_least=0.80, contestants=seconds, note="the same run"),
        Row(name=f"{name} with everything done, wall", value=spread(again_seconds), unit=" s", at_most=10, note=known),
    ]


def muxfer(folder: str | Path, *words: str, tree: Path = ROOT) -> tuple[dict[str, Any], float]:
    """Run `muxfer WORDS --json` in this folder: its result and its wall seconds. `tree`: the checkout that it runs."""
    began = time.perf_counter()
    result = dict(json.loads(python("-m", "muxfer", *words, "--json", folder=folder, tree=tree)))
    return result, time.perf_counter() - began


def python(*arguments: str, folder: str | Path | None = None, tree: Path = ROOT) -> str:
    """Run this Python with a checkout's muxfer and a ledger in the folder. Returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = str(tree)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout
