"""Hostile names in every place that takes a name. Each is refused, or made safe and unique inside the folder."""

import contextlib
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.refusals import run_command
from benchmarks.faults.harness.settings import IDENTITY
from muxfer.commands.csv_columns import read_columns
from muxfer.commands.export import _new_folder
from muxfer.commands.fit import _figure_stem
from muxfer.commands.model import _write
from muxfer.config.hydra_compose import compose, compose_model
from muxfer.config.models import Declared
from muxfer.config.parse import parse
from muxfer.config.study import LedgerConfig
from muxfer.config.task import ImageFolder
from muxfer.data.source import load_dataset
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.files import user_path, validate_writable
from muxfer.ledger.mlflow_ledger import MlflowLedger
from muxfer.ledger.tracking_uri import redact_uri, sqlite_path
from muxfer.models.families import family_of
from muxfer.models.plugins import allow
from muxfer.redaction import one_line
from muxfer.study.resolve import output_folder, words_of
from muxfer.trial import Outcome, Study, Trial

LETTERS = "ab01-_./\\'\"`$;&|<>*?~%{}[]()=,:# \t\n\r\0\x1b\u202e\u200b\u00e9\u0430\uff0f\u2215\u2024\U0001f4a3\ud800"
NAMES = (
    *("../evil", "../../evil", "..", ".", "/evil", "//evil", "~/evil", "~nobody-here/evil", "a/../../evil", "-rf"),
    *("--help", "lr-width\0", "lr\0width", "lr-width\n", "a\r\nb", "\x1b[2Ja", "'; drop table runs; --", '"a"'),
    *("`id`", "$(id)", "%s%n", "lr-w\u0456dth", "\uff4cr-width", "lr\u2010width", "lr-width\u200b", "\u202ehtdiw-rl"),
    *("..\uff0fevil", "\u2025/evil", "a" * 300, "\u00e9" * 150, "a" * 10_000, "x/" * 2000 + "evil", "", " "),
    *(".hidden", "con", "a:b", "file:///evil", "os:system", "builtins:eval", "subprocess:Popen", "torch:load"),
    *("muxfer.executors.worker:TrialRun", "os", "__main__"),
)


def names(seed: int, folder: Path, faults: int) -> int:
    """Give hostile names to every place in turn. Each is refused, or nothing is made outside the folder."""
    rng = random.Random(seed)
    home = folder / "a" / "b" / "c"
    home.mkdir(parents=True)
    os.chdir(home)
    os.environ |= {"MLFLOW_TRACKING_URI": "", "HOME": str(folder / "a")}
    ledger = _Ledger(home)
    places: list[Callable[[str], None]] = [
        *(_sweep, _group, _plugin, _table, _scales, _export_folder, _figure, _target, _words, _uri),
        *(_output_dir, _data_path, ledger.study, ledger.experiment, ledger.tags, _by_command),
    ]
    first = rng.randrange(len(places))
    for number in range(faults):
        place = places[(first + number) % len(places)]
        name = rng.choice(NAMES)
        if rng.random() < 0.4:
            name = "".join(rng.choices(LETTERS, k=rng.choice([1, 3, 8, 40, 3000])))
        try:
            place(name)
        except BadInput:
            pass
        except Exception as error:
            raise AssertionError(f"{place.__name__} {name[:200]!r}: {type(error).__name__}: {error}") from error
        outside = [path for path in folder.rglob("*") if home not in (path, *path.parents) and path not in home.parents]
        outside += [path for path in (Path("/evil"), Path("/evil.json")) if path.exists()]
        assert not outside, f"{place.__name__} {name[:200]!r} made {outside}"
    ledger.close()
    return faults


def _sweep(name: str) -> None:
    for read in (compose, compose_model):
        with contextlib.suppress(BadInput):
            read(name)
            raise AssertionError(f"{name[:60]!r} was accepted as a sweep")


def _group(name: str) -> None:
    for group in ("model", "+size", "scale", "training@model"):
        with contextlib.suppress(BadInput):
            compose("lr-width", [f"{group}={name}"])
            assert not name.strip(), f"{group}={name[:60]!r} was accepted"


def _plugin(name: str) -> None:
    known = set(sys.modules)
    allow([name], folder=os.getcwd())
    assert name in known, f"{name!r} was imported"  # a module that is already imported may be named


def _table(name: str) -> None:
    read_columns(name, ["a"])
    raise AssertionError(f"the table {name[:60]!r} was read")


def _scales(name: str) -> None:
    _act_if_inside(f"{name}.json", lambda: _write(user_path(f"{name}.json", "--scales"), {"a": 1}))


def _export_folder(name: str) -> None:
    def act() -> None:
        with _new_folder(user_path(name, "--folder")) as temporary:
            (temporary / "config.json").write_text("{}")

    _act_if_inside(name, act)


def _figure(name: str) -> None:
    _figure_stem(name, "runs.csv")


def _act_if_inside(path: str, act: Callable[[], object]) -> None:
    """Perform the call only if the path lies inside the current folder. A user may type any path."""
    if Path.cwd() in user_path(path, "here").resolve().parents:
        act()


def _target(name: str) -> None:
    sizes = {"family": "declared", "width": 4, "base_width": 4, "depth": 1, "head_dim": 4, "patch": 1, "image_size": 8}
    family_of(Declared(**sizes, channels=1, target=name, sizes={"w": "width"}, inputs={"x": "image"}))  # type: ignore[arg-type]
    raise AssertionError(f"{name[:60]!r} was accepted as a class, although its module is not registered")


def _words(name: str) -> None:
    sweep, *overrides = words_of(name, "--against")
    compose(sweep, overrides)
    raise AssertionError(f"{name[:60]!r} was accepted as a sweep")


def _uri(name: str) -> None:
    for password in ("hunter22", "@hunter22", "hunter22@", "/hunter22", "hunter22/x@y", "a@/hunter22", "5/hunter22"):
        for uri in (f"http://u:{password}@{name}", f"postgresql://u:{password}@h/{name}"):
            with contextlib.suppress(BadInput):
                sqlite_path(uri)
            assert "hunter22" not in redact_uri(uri), uri
            assert "hunter22" not in one_line(f"see {uri}"), uri
    for uri in (name, f"sqlite:///{name}"):
        with contextlib.suppress(BadInput):
            sqlite_path(uri)
        redact_uri(uri)


def _output_dir(name: str) -> None:
    where = output_folder(parse({**_plain(), "output_dir": name}))
    _act_if_inside(name, lambda: validate_writable(where))


def _data_path(name: str) -> None:
    config = parse({**_plain(), "data": {"name": "image_folder", "path": name, "image_size": 8, "channels": 1}})
    assert isinstance(config.data, ImageFolder)
    if Path.cwd() not in user_path(name, "data.path").resolve().parents:
        return  # another folder of this machine: it would only be read, and may be large
    load_dataset(config.data)
    raise AssertionError(f"pictures were found in {name[:60]!r}")


def _by_command(name: str) -> None:
    if "\0" in name:
        return _sweep(name)
    number = sum(map(ord, name)) % 6
    words = [
        ["sweep", "--dry-run", "--", name],
        ["verdict", "--table", f"./{name}", "--axis", "a", "--hp", "b", "--metric", "c"],
        ["clean", "--yes", "--", name],
        ["report", "lr-width", "--plugin", f"x{name}"],
        ["export", "--", name or "x"],
        ["fit", "--against", f"lr-width {name}", "isoflop"],
    ][number]
    code, out, err, _ = run_command(
        Path.cwd(), [word.encode(errors="surrogatepass").decode(errors="replace") for word in words]
    )
    assert code == 2, f"{words}: exit {code}: {err[-500:]}"
    assert (out, "Traceback" in err, err.count("\n")) == ("", False, 1), f"{words}: {out[:200]}{err[-500:]}"
    return None


@cache
def _plain() -> dict[str, Any]:
    return compose("lr-width")


class _Ledger:
    """One real ledger. Studies, experiments and texts with hostile names are written to it and read back."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: dict[str, str] = {}
        self._number = 0
        logging.getLogger("muxfer").setLevel(logging.ERROR)

    def study(self, name: str) -> None:
        self._write(study=name)
        assert Path(f"{name}-0").name == f"{name}-0", f"study {name[:60]!r} was accepted"

    def experiment(self, name: str) -> None:
        self._write(experiment=name)
        folders = {path.resolve() for path in (self._home / "mlruns").iterdir()}
        assert all(path.parent == (self._home / "mlruns").resolve() for path in folders), folders

    def tags(self, name: str) -> None:
        self._write(text=name)

    def _write(self, *, study: str = "lr-width", experiment: str = "muxfer", text: str = "x") -> None:
        self._number += 1
        config = LedgerConfig(tracking_uri=f"sqlite:///{self._home}/mlflow.db", experiment=experiment)
        config.validate()
        identity = {**IDENTITY, "text": text.encode(errors="replace").decode()}
        studied = Study(name=study, key=f"{self._number:016x}", identity=identity)
        ledger = MlflowLedger(config, folder=self._home / "muxfer")
        task, lineage = {"model": {"a": text}}, {"a": text}
        trial = Trial(key="0" * 16, setting={"width": 16}, replicate=0, task=task, lineage=lineage)
        lease = ledger.acquire(studied)
        try:
            ledger.open(studied, {"a": text}, lease)
            # a configuration with other characters is refused earlier
            ledger.begin(trial if text.isprintable() else replace(trial, task={"model": {}}, lineage={}))
            job = TrialJob(trial=trial, folder="", epoch=lease.epoch)
            ledger.settle(job.record(Outcome.FAILED, metric=None, step=0, error=text[:99]))
            ledger.flush(60)
            assert [record.error for record in ledger.records(studied)] == [text[:99]]
            assert [study.key for study in ledger.studies()].count(studied.key) == 1
        finally:
            lease.release()
            ledger.close()

    def close(self) -> None:
        """The folders of all experiments must differ, also where case is ignored."""
        names = [path.name for path in self._home.glob("mlruns/*")]
        assert len({name.casefold() for name in names}) == len(names), names
