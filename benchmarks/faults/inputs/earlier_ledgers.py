"""Ledgers of every earlier version of muxfer. Today's commands read them, and refuse a ledger of a newer version.

`tests/fixtures/ledgers/COMMIT.sql.gz` is the dump of a database that the code of that commit filled. @FOLDER@ stands
for its folder. COMMIT.json holds the results that its commands printed.
`python -m benchmarks.faults.inputs.earlier_ledgers COMMIT` makes both.
"""

import gzip
import json
import math
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

from benchmarks.commands import muxfer
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
"""The overrides of the sweeps that filled the ledgers. They must never change."""
TARGET = ("target.width=64", "target.steps=40", "--force")
SAME = 1e-3
"""Largest relative difference of today's metric from the recorded one. Another processor may cause it."""
LEARNED = 1.0
"""A trial on digits with a validation loss below this has learned something. Above it, the rate was too high."""


def names() -> list[str]:
    """The commits of which a ledger is kept."""
    return sorted(file.name.removesuffix(".sql.gz") for file in LEDGERS.glob("*.sql.gz"))


def recorded_results(name: str) -> dict[str, Any]:
    """The results that the commands of a version printed when they filled its ledger."""
    return dict(json.loads((LEDGERS / f"{name}.json").read_text()))


def restore(name: str, folder: Path) -> dict[str, Any]:
    """Put the ledger of a version and the folders of its trials into a folder. Returns that version's results."""
    said = recorded_results(name)
    script = gzip.decompress((LEDGERS / f"{name}.sql.gz").read_bytes()).decode().replace(FOLDER, str(folder))
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.executescript(script)
        connection.execute("PRAGMA journal_mode=WAL")
    for trial in said["sweep"]["trials"]:
        (folder / "muxfer" / f"lr-width-{said['sweep']['study'][:8]}" / "trials" / trial["key"]).mkdir(parents=True)
    return said


def make_newer(database: Path) -> None:
    """Raise the schema's version, as a later version of muxfer would."""
    with closing(sqlite3.connect(database)) as connection, connection:
        changed = connection.execute("update tags set value = value + 1 where key = 'muxfer.schema'").rowcount
    assert changed, "no run has the version of the ledger's schema"


def content(database: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def earlier_ledgers(seed: int, folder: Path, faults: int) -> int:
    """Read each version's ledger with today's commands; then refuse the same ledger with a newer schema."""
    rng = random.Random(seed)
    for number in range(faults):
        name = names()[(seed + number) % len(names())]
        sweep = Sweep(new_folder(folder), OVERRIDES, compared=False)  # it has no checkpoints
        earlier = restore(name, sweep.folder)
        recorded = results(earlier["sweep"])
        result = sweep.finish()
        assert result["ran"] == 0, f"{name}: {result['ran']} trials were run again"
        assert results(result) == recorded, f"{name}: today's sweep reads other results"
        assert result["best"] == earlier["sweep"]["best"]
        verdict = sweep.run(command="verdict").expect(0, 6)
        grids = {axis: optimum["grid"] for axis, optimum in json.loads(verdict.out)["optimum"].items()}
        assert grids == {axis: optimum["grid"] for axis, optimum in earlier["sweep"]["verdict"]["optimum"].items()}
        assert Path(sweep.run(command="report").expect(0).result["report"]).exists()
        make_newer(sweep.database)
        before = content(sweep.database)
        line = sweep.run(command=rng.choice(["sweep", "verdict", "report"])).expect(2).last_line
        assert "written by a newer muxfer" in line, line
        assert "upgrade muxfer" in line, line
        assert content(sweep.database) == before, f"{name}: a refused ledger was changed"
        sweep.assert_clean()
    return faults


def assert_same_numerics(recorded: Mapping[str, list[Any]], today: Mapping[str, list[Any]], name: str) -> None:
    """A trial with the same key must have the same result, else NUMERICS_VERSION should have been raised.

    A trial that learned nothing is not compared. At such rates the last digit decides, and it depends on the processor
    and the number of threads.
    """
    for key in recorded.keys() & today.keys():
        (outcome, metric, step), (outcome_now, metric_now, step_now) = recorded[key], today[key]
        if metric is None or metric > LEARNED:
            continue
        same = (outcome, step) == (outcome_now, step_now) and math.isclose(metric, metric_now, rel_tol=SAME)
        assert same, f"trial {key} ended as {recorded[key]} in {name} and as {today[key]} today"


def make(commit: str) -> None:
    """Run a commit's sweep and transfer in an empty folder, and keep a dump of the ledger."""
    with tempfile.TemporaryDirectory() as place:
        tree, folder = Path(place, "tree"), Path(place, "folder")
        tree.mkdir()
        folder.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
        said: dict[str, Any] = {"commit": commit}
        for command, more in (("sweep", ()), ("transfer", TARGET)):
            said[command], _ = muxfer(folder, command, "lr-width", *OVERRIDES, *more, tree=tree)
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


if __name__ == "__main__":
    make(sys.argv[1])
