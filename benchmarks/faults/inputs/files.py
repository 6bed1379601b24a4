"""Hostile content in every file that muxfer reads. It is refused, and the canary file never appears.

Each pickle here makes the canary when it is unpickled, which is tested first. muxfer's own sources are searched too,
for anything that could run a file's content.
"""

import ast
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from benchmarks.faults.harness.refusals import assert_refused
from benchmarks.faults.harness.settings import ROOT
from benchmarks.faults.harness.sweep import new_folder
from benchmarks.faults.inputs.ledger_files import artifacts, database_file, ledger_tags, ray_state, spool_file
from muxfer.commands.export import model_of, weights_of
from muxfer.commands.fit import fit
from muxfer.commands.verdict_table import verdict
from muxfer.config.hydra_compose import compose
from muxfer.config.parse import parse
from muxfer.config.task import ImageFolder
from muxfer.data.source import load_dataset
from muxfer.files import StudyFolder
from muxfer.models.families import family_of
from muxfer.study.resolve import resolve
from muxfer.training import checkpoint
from muxfer.trial import Outcome, Record, Study

KEY = "0123456789abcdef"
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "instantiate", "read_pickle", "unsafe_load", "full_load"}
BANNED_ATTRIBUTES = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("mlflow", "pyfunc")}
BANNED_KEYWORDS = {"allow_pickle", "weights_only"}


class _Bomb:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def files(seed: int, folder: Path, faults: int) -> int:
    """Write hostile files of all kinds in turn, and read each with its real reader. Every third seed adds a sweep."""
    rng = random.Random(seed)
    assert_sources_run_no_files()
    canary = folder / "canary"
    bomb = pickle.dumps(_Bomb(canary), protocol=rng.randrange(6))
    pickle.loads(bomb)
    assert canary.exists(), "unpickling does not make the canary, so this row would test nothing"
    canary.unlink()
    os.environ["MLFLOW_TRACKING_URI"] = ""
    kinds: list[Callable[[random.Random, Path, bytes], None]] = [
        *(_checkpoint, ledger_tags, _target_key, _outside_folders, _table, _picture, _export),
        *(database_file, spool_file, artifacts),
    ]
    first = rng.randrange(len(kinds))
    for number in range(faults):
        home = new_folder(folder)
        (home / "outside").mkdir()
        (home / "work").mkdir()
        os.chdir(home / "work")
        act = ray_state if number == 0 and seed % 3 == 0 else kinds[(first + number) % len(kinds)]
        act(rng, home / "work", bomb)
        assert not canary.exists(), f"{act.__name__}: the canary appeared"
    return faults


def _checkpoint(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A checkpoint with a matching manifest. One of its files is a pickle, deep JSON, or not a regular file."""
    step = home / "trial" / "attempt-0001-00" / "step-00000010"
    step.mkdir(parents=True)
    tensors = save({})
    content = dict.fromkeys(("model.safetensors", "ema.safetensors", "optimizer.safetensors"), tensors)
    content["state.json"] = json.dumps({"key": KEY, "step": 10, "torch": "2"}).encode()
    victim = rng.choice([*content, "optimizer.pt", "rng.pkl", "manifest.json"])
    hostile = rng.choice([bomb, b"[" * 100_000, b'{"a":' * 50_000, b"5", b"[]", b'"x"', b"\xff" * 64, bomb[::-1]])
    content[victim] = hostile
    for name, data in content.items():
        (step / name).write_bytes(data)
    files: Any = {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in content.items()}
    if victim != "manifest.json":
        if rng.random() < 0.2:
            outside = {**files, "../../x": files["state.json"]}
            files = rng.choice([list(files), outside, {"state.json": 5}, "state.json"])
        (step / "manifest.json").write_text(json.dumps({"files": files}))
    if rng.random() < 0.2:
        (step / victim).unlink()
        rng.choice([os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])(step / victim)
    loaded = checkpoint.load_newest(home / "trial", key=KEY)
    harmless = victim in ("optimizer.pt", "rng.pkl")  # files that are only hashed, never parsed
    assert loaded is None or harmless, f"{victim} with {hostile[:20]!r} was loaded"
    checkpoint.prune(step.parent, keep=1)


def _target_key(rng: random.Random, home: Path, bomb: bytes) -> None:
    """`_target_` and `model.target`: with them other systems run whatever a configuration names."""
    canary = home.parents[1] / "canary"
    call = f"_target_: os.system\ncommand: touch {canary}\n_args_: ['touch {canary}']\n"
    target = rng.choice(["os:system", "posix:system", "subprocess:run", "torch:load", "builtins:exec", "pathlib:Path"])
    declared = (
        f"family: declared\ntarget: {target}\nwidth: 32\nbase_width: 32\ndepth: 1\nhead_dim: 16\npatch: 1\n"
        f"image_size: 8\nchannels: 1\nsizes: {{hidden: width}}\narguments: {{command: 'touch {canary}'}}\n"
        "inputs: {x: image}\n"
    )
    nested = f"family: dit\nwidth:\n  {call.replace(chr(10), chr(10) + '  ')}"
    text = rng.choice([call, declared, nested, "hydra:\n  callbacks: {x: {_target_: os.system}}\n"])
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "evil.yaml").write_text(text)
    assert_refused(lambda: family_of(resolve("lr-width", ["model=evil"], planned=True).config.model))
    assert_refused(lambda: resolve("lr-width", [f"+model._target_={target}"]))
    assert_refused(lambda: parse({"_target_": target}))


def _outside_folders(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A configuration outside the folders, named in an override, a defaults list, a package or a search path."""
    (home.parent / "outside" / "evil.yaml").write_text("family: dit\nwidth: 9999\n")
    folder = f"{home.parent}/outside"
    up = rng.choice(["../../outside/evil", "../" * 12 + f"{folder[1:]}/evil", f"{folder}/evil"])
    up = rng.choice([up, f"x/../{up}", f"./{up}", f"{up}.yaml"])
    for override in (f"model={up}", f"+model@x={up}", "+../../outside=evil", f"hydra.searchpath=[{folder}]"):
        assert_refused(partial(compose, "lr-width", [override]))
    group = rng.choice(["", "model@x", "override model", "/model@x", "optional model@x"])
    entry = f"{{{group}: {up}}}" if group else up
    (home / "sweeps").mkdir()
    (home / "sweeps" / "mine.yaml").write_text(f"defaults: [base, {entry}, _self_]\n")
    assert_refused(lambda: compose("mine"))


def _table(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Tables for `verdict --table` and `fit --table`."""
    file = home / rng.choice(["runs.csv", "runs.pkl", "runs.csv.gz"])
    formula = b"flops,params,loss\n=cmd|' /C calc'!A0,1,1\n"
    file.write_bytes(rng.choice([bomb, b"a,b,c\n" + bomb, b"\x80\x04" + bomb, b"PK\x03\x04" + bomb, formula]))
    assert_refused(lambda: verdict(str(file), axis="a", hp="b", metric="c"))
    assert_refused(lambda: fit(None, [], table=str(file)))


def _picture(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Files with the suffix of a picture that hold something else, such as a program in PostScript."""
    canary = home.parents[1] / "canary"
    program = f"({canary}) (w) file\n(%pipe%touch {canary}) (w) file\n"
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{program}".encode()
    hostile = rng.choice([bomb, postscript, *(head + bomb for head in (b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\x93NUMPY"))])
    for number in range(12):  # different ones: copies of one picture are refused before they are opened
        (home / f"{number}.{rng.choice(['png', 'jpg', 'tiff', 'gif', 'webp'])}").write_bytes(hostile + bytes([number]))
    pictures = ImageFolder(name="image_folder", path=str(home), image_size=8)
    assert_refused(lambda: load_dataset(pictures), "can't be read")


def _export(rng: random.Random, home: Path, bomb: bytes) -> None:
    """The files of a target, which `export` reads."""
    record = Record(
        key=KEY, setting={}, replicate=0, outcome=Outcome.FINISHED, metric=1.0, step=1, kind="target", run_id="1"
    )
    folder = home / f"target-{KEY[:8]}"
    folder.mkdir()
    for name in ("target.json", "ema.safetensors", "samples.png"):
        (folder / name).write_bytes(bomb)
    assert_refused(lambda: weights_of(record, StudyFolder(home)), "not on this host, or damaged")
    if rng.random() < 0.7:
        tasks = (b'{"task": 5}', b'{"task": {"model": {"family": "os"}}}', b"{}")
        (folder / "target.json").write_bytes(rng.choice([b"[" * 100_000, b"5", b"[]", *tasks]))
    assert_refused(lambda: model_of(Study(name="x", key=KEY, identity={}), record, StudyFolder(home)))


def assert_sources_run_no_files() -> None:
    """No module of muxfer or proxy_models imports or calls what runs a file's content.

    `.eval()` of a torch module is allowed: it runs no text.
    """
    for file in (*(ROOT / "muxfer").rglob("*.py"), *(ROOT / "proxy_models").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            _assert_harmless(node, file)


def _assert_harmless(node: ast.AST, file: Path) -> None:
    where = f"{file.relative_to(ROOT)}, line {getattr(node, 'lineno', 0)}"
    names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
    names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
    assert not BANNED_MODULES & {name.split(".")[0] for name in names}, f"{where} imports {names}"
    if isinstance(node, ast.Name | ast.alias):
        name = node.id if isinstance(node, ast.Name) else node.name
        assert name not in BANNED_CALLS, f"{where} uses {name}"
    if isinstance(node, ast.Attribute):
        base = node.value.id if isinstance(node.value, ast.Name) else ""
        assert (base, node.attr) not in BANNED_ATTRIBUTES, f"{where} uses {base}.{node.attr}"
        assert node.attr not in BANNED_CALLS - {"eval", "compile"}, f"{where} uses .{node.attr}"
        assert node.attr != "compile" or base in ("re", "torch"), f"{where} uses .compile"
    if isinstance(node, ast.keyword):
        assert node.arg not in BANNED_KEYWORDS, f"{where} uses {node.arg}"
