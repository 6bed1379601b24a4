"""Ledgers written by every earlier version of ours: today's commands read them, and refuse one of a newer version.

`tests/fixtures/ledgers/COMMIT.sql.gz` is the dump of a database that our code of that commit filled, with @FOLDER@
where its folder stood; COMMIT.json is what it said of it.
`python -m benchmarks.faults.inputs.earlier_ledgers COMMIT` makes both.
"""

import gzip
import json
import math
import os
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.promise import results
from benchmarks.faults.harness.settings import ROOT
from benchmarks.faults.harness.sweep import Sweep, new_folder

LEDGERS = ROOT / "tests" / "fixtures" / "ledgers"
FOLDER = "@FOLDER@"
OVERRIDES = (
    *("search.width=[16,32]", "search.base_lr=[2**-8,2**-6,2**-1]"),
    *("model.base_width=32", "model.depth=1", "model.patch=4"),
    *("training.steps=120", "training.batch_size=32", "training.checkpoint_every=20", "evaluation.timesteps=2"),
)
"""Of the sweeps that filled them: never to be changed."""
TARGET = ("target.width=64", "target.steps=40", "--force")
SAME = 1e-3
"""How near today's metric must be to the recorded one: another processor's arithmetic, not another numerics."""
LEARNED = 1.0
"""Validation loss of digits below which a trial has learned something; above it the rate was too high."""


def names() -> list[str]:
    return sorted(file.name.removesuffix(".sql.gz") for file in LEDGERS.glob("*.sql.gz"))


def said_of(name: str) -> dict[str, Any]:
    """What the commands of a version answered when they filled its ledger."""
    return dict(json.loads((LEDGERS / f"{name}.json").read_text()))


def restore(name: str, folder: Path) -> dict[str, Any]:
    """Put the ledger of a version into a folder, beside the folders of its trials; what that version said of it."""
    said = said_of(name)
    script = gzip.decompress((LEDGERS / f"{name}.sql.gz").read_bytes()).decode().replace(FOLDER, str(folder))
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.executescript(script)
        connection.execute("PRAGMA journal_mode=WAL")
    for trial in said["sweep"]["trials"]:
        (folder / "muxfer" / f"lr-width-{said['sweep']['study'][:8]}" / "trials" / trial["key"]).mkdir(parents=True)
    return said


def make_newer(database: Path) -> None:
    """As a later version of ours would leave it."""
    with closing(sqlite3.connect(database)) as connection, connection:
        changed = connection.execute("update tags set value = value + 1 where key = 'muxfer.schema'").rowcount
    assert changed, "no run bears the version of the ledger's schema"


def content(database: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


class Recorded(Sweep):
    """A sweep of which the ledger alone is there."""

    def look(self) -> None:
        """No checkpoint that its points could be held to."""


def earlier_ledgers(seed: int, folder: Path, faults: int) -> int:
    """Each version's ledger under today's commands; then the same ledger with a schema of tomorrow."""
    rng = random.Random(seed)
    for number in range(faults):
        name = names()[(seed + number) % len(names())]
        sweep = Recorded(new_folder(folder, number), OVERRIDES)
        said = restore(name, sweep.folder)
        recorded = results(said["sweep"])
        answer = sweep.finish()
        assert answer["ran"] == 0, f"{name}: {answer['ran']} trials were run again"
        assert results(answer) == recorded, f"{name}: today's sweep reads other results"
        assert answer["best"] == said["sweep"]["best"]
        verdict = sweep.run(command="verdict").expect(0, 6)
        grids = {axis: optimum["grid"] for axis, optimum in json.loads(verdict.out)["optimum"].items()}
        assert grids == {axis: optimum["grid"] for axis, optimum in said["sweep"]["verdict"]["optimum"].items()}
        assert Path(sweep.run(command="report").expect(0).answer["report"]).exists()
        make_newer(sweep.database)
        before = content(sweep.database)
        told = sweep.run(command=rng.choice(["sweep", "verdict", "report"])).expect(2).last_line
        assert "written by a newer muxfer" in told, told
        assert "upgrade muxfer" in told, told
        assert content(sweep.database) == before, f"{name}: a ledger that was refused was written to"
        sweep.nothing_left()
    return faults


def check_numerics(recorded: Mapping[str, list[Any]], today: Mapping[str, list[Any]], name: str) -> None:
    """Where a trial's key is still the same, so must its result be: else NUMERICS_VERSION should have gone up.

    Not where it learned nothing: at such rates the last digit, another processor's or number of threads', decides.
    """
    for key in recorded.keys() & today.keys():
        (outcome, metric, step), (outcome_now, metric_now, step_now) = recorded[key], today[key]
        if metric is None or metric > LEARNED:
            continue
        same = (outcome, step) == (outcome_now, step_now) and math.isclose(metric, metric_now, rel_tol=SAME)
        assert same, f"trial {key} of {name} ended as {recorded[key]}, today as {today[key]}, under the same key"


def make(commit: str) -> None:
    """Run a commit's own sweep and transfer in a folder of their own, and keep the ledger as a dump."""
    with tempfile.TemporaryDirectory() as place:
        tree, folder = Path(place, "tree"), Path(place, "folder")
        tree.mkdir()
        folder.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        said = {"commit": commit, "sweep": _run(tree, folder, "sweep"), "transfer": _run(tree, folder, "transfer")}
        with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
            script = "\n".join(line for line in connection.iterdump() if "sqlite_sequence" not in line)
        private = {str(folder): FOLDER, socket.gethostname(): "host", sys.executable: "python"}
        private[Path("/proc/sys/kernel/random/boot_id").read_text().strip()] = "boot"
        text = json.dumps(said, indent=1)
        for found, instead in private.items():
            script, text = script.replace(found, instead), text.replace(found, instead)
    LEDGERS.mkdir(parents=True, exist_ok=True)
    (LEDGERS / f"{commit}.sql.gz").write_bytes(gzip.compress(script.encode(), 9, mtime=0))
    (LEDGERS / f"{commit}.json").write_text(text + "\n")


def _run(tree: Path, folder: Path, command: str) -> dict[str, Any]:
    arguments = [*OVERRIDES, *(TARGET if command == "transfer" else ()), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "muxfer", command, "lr-width", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree), "MLFLOW_TRACKING_URI": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    make(sys.argv[1])
