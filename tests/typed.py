"""A command as a user types it: in a folder of its own, with this tree's code."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
Stream = IO[Any] | int


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", **changes}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "muxfer", *map(str, arguments)]


def muxfer(
    folder: Path,
    *arguments: str | Path,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
    **changes: str,
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end. `changes` are variables of its environment."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**changes),
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=600,
    )


def start(folder: Path, *arguments: str, stderr: Stream = subprocess.PIPE) -> "subprocess.Popen[str]":
    """Start the command in a session of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": stderr}
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), text=True, start_new_session=True, **streams
    )


def answer(folder: Path, *arguments: str, code: int = 0) -> Any:
    """The JSON object that the command prints."""
    done = muxfer(folder, *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def wait_for(condition: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: float = 300) -> None:
    """Wait until something happens while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
