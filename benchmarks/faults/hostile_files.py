"""Hostile content in every file that we read: it is refused, and a canary never appears.

Each pickle here would make the canary if anybody unpickled it; that it does is tried first. And our own sources are
searched for whatever could run what a file says.
"""

import ast
import contextlib
import hashlib
import json
import os
import pickle
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.faults.bench import ROOT, Sweep, new_folder
from muxfer.errors import BadInput

if TYPE_CHECKING:
    from muxfer.trial import Study, Trial

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "instantiate", "read_pickle", "unsafe_load", "full_load"}
BANNED_ATTRIBUTES = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("mlflow", "pyfunc")}
KEY = "0123456789abcdef"
PRIVATE = "a key of the user's own, outside the study"
TINY = (
    *("search.width=[16]", "search.base_lr=[2**-8]", "model.base_width=16", "model.depth=1", "model.patch=4"),
    *("training.steps=20", "training.batch_size=8", "training.warmup_steps=0", "training.checkpoint_every=10"),
    *("evaluation.timesteps=1", "compute.slots=1"),
)


class _Bomb:
    """Unpickled, it makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def files(seed: int, folder: Path, faults: int) -> int:
    """One hostile file after the other, each read by the real reader; the first case of all has a sweep with Ray."""
    rng = random.Random(seed)
    nothing_runs_files()
    canary = folder / "canary"
    bomb = pickle.dumps(_Bomb(canary), protocol=rng.randrange(6))
    pickle.loads(bomb)
    assert canary.exists(), "the pickles here are blunt"
    canary.unlink()
    os.environ["MLFLOW_TRACKING_URI"] = ""
    kinds: list[Callable[[random.Random, Path, bytes], None]] = [
        *(_checkpoint, _ledger_tags, _target_key, _climbing, _table, _picture, _export, _database, _spool, _state),
    ]
    first = rng.randrange(len(kinds))
    for number in range(faults):
        home = new_folder(folder, number)
        (home / "outside").mkdir()
        (home / "work").mkdir()
        os.chdir(home / "work")
        act = _ray_state if number == 0 and seed % 3 == 0 else kinds[(first + number) % len(kinds)]
        act(rng, home / "work", bomb)
        assert not canary.exists(), f"{act.__name__}: the canary appeared"
    return faults


def nothing_runs_files() -> None:
    """No module of ours imports or calls what runs a file's content. `.eval()` of a torch module is another thing."""
    for file in (*(ROOT / "muxfer").rglob("*.py"), *(ROOT / "proxy_models").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
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
                assert node.arg not in ("allow_pickle", "weights_only"), f"{where} uses {node.arg}"


def _refused(act: Callable[[], object], *what: str) -> None:
    try:
        got = act()
    except BadInput as error:
        told = str(error)
    else:
        raise AssertionError(f"it was taken: {str(got)[:200]}")
    assert all(word in told for word in what), told


def _checkpoint(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A whole checkpoint, right manifest and all, one of whose files is a pickle, deep JSON or no file at all."""
    from muxfer.training import checkpoint

    step = home / "trial" / "attempt-0001-00" / "step-00000010"
    step.mkdir(parents=True)
    from safetensors.numpy import save

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
            files = rng.choice(
                [list(files), {**files, "../../x": files["state.json"]}, {"state.json": 5}, "state.json"]
            )
        (step / "manifest.json").write_text(json.dumps({"files": files}))
    if rng.random() < 0.2:
        (step / victim).unlink()
        rng.choice([os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir])(step / victim)
    found = checkpoint.load_newest(home / "trial", key=KEY)
    harmless = victim in ("optimizer.pt", "rng.pkl")  # named, hashed, and never opened for more than that
    assert found is None or harmless, f"{victim} with {hostile[:20]!r} was taken"
    checkpoint.prune(step.parent, keep=1)


def _ledger_tags(rng: random.Random, home: Path, bomb: bytes) -> None:
    """The tags that hold our JSON, written over by somebody else: no JSON, or JSON of another form."""
    study, _, record = _ledger_of_one()
    identity: Any = study.identity
    keys: list[Any] = ["../../outside", "a b", ""]
    identities: list[Any] = [
        *({}, identity | {"data": {}}, identity | {"objective": {"name": ["ddpm"]}}, identity | {"model": 5}),
        *(identity | {name: rng.choice([None, [1], 0.5])} for name in ("data_fingerprint", "numerics", "training")),
    ]
    configs: list[Any] = [{}, {"search": 5}, {"training": {"steps": "x"}}]
    wrong = {"step": "x", "epoch": None, "train_seconds": "a", "checkpoint": 5, "metric": True, "outcome": ["finished"]}
    records: list[Any] = [
        *({}, record | {"setting": 5}, record | {"setting": {"width": [16]}}, record | {"step": 10**30}),
        *(record | {name: value} for name, value in wrong.items()),
    ]
    formed = {
        "muxfer.study": keys,
        "muxfer.identity.0": [json.dumps(one) for one in identities],
        "muxfer.config.0": [json.dumps(one) for one in configs],
        "muxfer.record.e1": [json.dumps(one) for one in records],
    }
    tag = rng.choice([*formed, "muxfer.identity.parts"])
    text = rng.choice(
        [bomb.decode("latin-1"), "[" * 7000, '{"a":' * 1200, "NaN", "5", '"x"', "[1]", "9" * 5000, "", "null"]
    )
    if tag in formed and (tag == "muxfer.study" or rng.random() < 0.7):
        text = rng.choice(formed[tag])
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as connection, connection:
        changed = connection.execute("update tags set value = ? where key = ?", (text, tag)).rowcount
        assert changed, f"no run has a tag {tag}"
    command = rng.choice(["status", "verdict", "report", "transfer"])
    told = Sweep(home, TINY).run(command=command).expect(2).err.strip()
    what = f"{command} with {tag} {text[:200]!r}: {told}"
    assert len(told.splitlines()) == 1, what
    assert tag == "muxfer.config.0" or "none of muxfer's" in told, what


def _target_key(rng: random.Random, home: Path, bomb: bytes) -> None:
    """_target_ and model.target, by which other systems run what a configuration names."""
    from muxfer.config.parse import parse
    from muxfer.models.families import family_of
    from muxfer.study.resolve import resolve

    canary = home.parents[1] / "canary"
    call = f"_target_: os.system\ncommand: touch {canary}\n_args_: ['touch {canary}']\n"
    target = rng.choice(["os:system", "posix:system", "subprocess:run", "torch:load", "builtins:exec", "pathlib:Path"])
    declared = (
        f"family: declared\ntarget: {target}\nwidth: 32\nbase_width: 32\ndepth: 1\nhead_dim: 16\npatch: 1\n"
        f"image_size: 8\nchannels: 1\nsizes: {{hidden: width}}\narguments: {{command: 'touch {canary}'}}\n"
        "inputs: {x: image}\n"
    )
    text = rng.choice(
        [
            call,
            declared,
            f"family: dit\nwidth:\n  {call.replace(chr(10), chr(10) + '  ')}",
            "hydra:\n  callbacks: {x: {_target_: os.system}}\n",
        ]
    )
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "evil.yaml").write_text(text)

    def act() -> None:
        family_of(resolve("lr-width", ["model=evil"], planned=True).config.model)

    _refused(act)
    _refused(lambda: resolve("lr-width", [f"+model._target_={target}"]))
    _refused(lambda: parse({"_target_": target}))


def _climbing(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A configuration outside the folders, asked for by an override, a list of defaults, a package or a search path."""
    from muxfer.config.hydra_compose import compose

    (home.parent / "outside" / "evil.yaml").write_text("family: dit\nwidth: 9999\n")
    up = rng.choice(
        ["../../outside/evil", "../" * 12 + str(home.parent / "outside/evil")[1:], f"{home.parent}/outside/evil"]
    )
    up = rng.choice([up, f"x/../{up}", f"./{up}", f"{up}.yaml"])
    for override in (
        f"model={up}",
        f"+model@x={up}",
        f"+../../outside={'evil'}",
        f"hydra.searchpath=[{home.parent}/outside]",
    ):
        _refused(lambda override=override: compose("lr-width", [override]))  # type: ignore[misc]
    entry = rng.choice(
        [up, f"{{model@x: {up}}}", f"{{override model: {up}}}", f"{{/model@x: {up}}}", f"{{optional model@x: {up}}}"]
    )
    (home / "sweeps").mkdir()
    (home / "sweeps" / "mine.yaml").write_text(f"defaults: [base, {entry}, _self_]\n")
    _refused(lambda: compose("mine"))


def _table(rng: random.Random, home: Path, bomb: bytes) -> None:
    from muxfer.commands.fit import fit
    from muxfer.commands.verdict_table import verdict

    file = home / rng.choice(["runs.csv", "runs.pkl", "runs.csv.gz"])
    formula = b"flops,params,loss\n=cmd|' /C calc'!A0,1,1\n"
    file.write_bytes(rng.choice([bomb, b"a,b,c\n" + bomb, b"\x80\x04" + bomb, b"PK\x03\x04" + bomb, formula]))
    _refused(lambda: verdict(str(file), axis="a", hp="b", metric="c"))
    _refused(lambda: fit(None, [], table=str(file)))


def _picture(rng: random.Random, home: Path, bomb: bytes) -> None:
    """Pictures that are none, or programs (PostScript), under the name of one."""
    from muxfer.config.task import ImageFolder
    from muxfer.data.source import load

    canary = home.parents[1] / "canary"
    postscript = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({canary}) (w) file\n(%pipe%touch {canary}) (w) file\n"
    )
    hostile = rng.choice(
        [bomb, postscript.encode(), b"\x89PNG\r\n\x1a\n" + bomb, b"GIF89a" + bomb, b"\x93NUMPY" + bomb]
    )
    for number in range(12):
        (home / f"{number}.{rng.choice(['png', 'jpg', 'tiff', 'gif', 'webp'])}").write_bytes(hostile)
    _refused(lambda: load(ImageFolder(name="image_folder", path=str(home), image_size=8)), "can't be read")


def _export(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A target's own files, which `export` reads where its checkpoints went."""
    from muxfer.commands.export import model_of, weights_of
    from muxfer.trial import Outcome, Record, Study

    record = Record(
        key=KEY, setting={}, replicate=0, outcome=Outcome.FINISHED, metric=1.0, step=1, kind="target", run_id="1"
    )
    folder = home / f"target-{KEY[:8]}"
    folder.mkdir()
    for name in ("target.json", "ema.safetensors", "samples.png"):
        (folder / name).write_bytes(bomb)
    _refused(lambda: weights_of(record, home), "not on this host, or damaged")
    if rng.random() < 0.7:
        hostile = rng.choice(
            [b"[" * 100_000, b"5", b"[]", b'{"task": 5}', b'{"task": {"model": {"family": "os"}}}', b"{}"]
        )
        (folder / "target.json").write_bytes(hostile)
    _refused(lambda: model_of(Study(name="x", key=KEY, identity={}), record, home))


def _database(rng: random.Random, home: Path, bomb: bytes) -> None:
    from muxfer.config.study import LedgerConfig
    from muxfer.ledger.mlflow_ledger import MlflowLedger

    file = home / "mlflow.db"
    kind = rng.randrange(4)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    else:
        file.write_bytes([bomb, b"SQLite format 3\0" + bomb][kind - 2])
    _refused(lambda: MlflowLedger(LedgerConfig(tracking_uri=f"sqlite:///{file}"), folder=home / "muxfer").studies())


def _spool(rng: random.Random, home: Path, bomb: bytes) -> None:
    """A spool of others: what is no operation is left out, no file from outside the study is sent, the rest is done."""
    from muxfer.study.resolve import resolve
    from muxfer.study.session import driving, open_ledger

    study, trial, _ = _ledger_of_one()
    request = resolve("lr-width", TINY)

    def replay() -> Path:
        with open_ledger(request) as ledger, driving(request, study, ledger, None):
            spool: Path = ledger._writer.spool.path  # type: ignore[attr-defined]
            return spool

    spool = replay()
    spool = spool.with_name(f"{spool.stem[:-6]}000001.jsonl")
    private = home.parent / "outside" / "id_rsa"
    private.write_text(PRIVATE)
    if rng.random() < 0.3:
        make = rng.choice([os.mkfifo, os.mkdir, lambda path: os.symlink(private, path)])
        make(spool if (end := rng.choice(["jsonl", "offset"])) == "jsonl" else spool.with_suffix(".offset"))
        if end == "offset":
            spool.write_text("{}\n")
        _refused(replay, "is no file", "move it away")
        assert private.read_text() == PRIVATE
        return
    (request.home / "link.svg").symlink_to(private)
    (request.home / "folder").symlink_to(private.parent)
    (request.home / "own.svg").write_text("own")
    up = os.path.relpath(private, request.home)
    outside = rng.choice(
        [str(private), up, f"{request.home}/{up}", f"{request.home}/link.svg", "link.svg", "folder/id_rsa"]
    )
    key = rng.choice([None, trial.key])
    wrong: Any = {"epoch": "x", "points": 5, "path": [outside], "end_ms": 10**30, "paused": [[]], "record": {"step": 1}}
    shapes = [
        {"op": op, "key": key, "epoch": 1, "name": "x", "text": "x", **wrong} for op in ("points", "settle", "rest")
    ]
    operations: list[Any] = [
        *({"op": "file", "key": key, "path": outside, "epoch": 1}, {"op": "file", **wrong}, *shapes),
        {"op": "file", "key": None, "path": str(request.home / "own.svg"), "epoch": 1},
    ]
    lines = [bomb.replace(b"\n", b" "), *(json.dumps(operation).encode() for operation in operations)]
    spool.write_bytes(b"\n".join(lines) + b"\n")
    if offset := rng.choice(["", "-5", "9" * 10, "9" * 5000, "x"]):
        spool.with_suffix(".offset").write_text(offset)
    replay()
    assert not spool.exists(), "it was not replayed"
    sent = [file for file in (home / "mlruns").rglob("*") if file.is_file()]
    assert "own.svg" in {file.name for file in sent}, sent
    assert not [file for file in sent if PRIVATE in file.read_text(errors="replace")], f"{outside} was sent"


def _state(rng: random.Random, home: Path, bomb: bytes) -> None:
    """MLflow's artifacts: models that others pickled lie there; of these nothing is read."""
    study, trial, _ = _ledger_of_one()
    for name in ("model.pkl", "python_model.pkl", "task.json", "config.json", "MLmodel", "report.html"):
        for folder in [path for path in (home / "mlruns").rglob("artifacts") if path.is_dir()]:
            (folder / name).write_bytes(bomb)
    from muxfer.study.resolve import resolve
    from muxfer.study.session import open_ledger

    request = resolve("lr-width", TINY)
    with open_ledger(request) as ledger:
        assert ledger.studies() == [study]
        assert ledger.config(study)["training"]["steps"] == 20
        assert [record.metric for record in ledger.records(study)] == [1.0]
        assert ledger.curves(study, "train_loss") == {trial.key: []}


def _ledger_of_one() -> tuple["Study", "Trial", dict[str, Any]]:
    """A study of one trial in the ledger of the current folder: it, its trial, and the record as it stands there."""
    from muxfer.config.task import to_plain
    from muxfer.study.resolve import resolve
    from muxfer.study.session import driving, open_ledger
    from muxfer.study.trials import grid_trials
    from muxfer.trial import Outcome, Record

    request = resolve("lr-width", TINY)
    [trial] = grid_trials(request.config, fingerprint=request.fingerprint)
    record = Record(
        key=trial.key, setting=trial.setting, replicate=0, outcome=Outcome.FINISHED, metric=1.0, step=1, epoch=1
    )
    with open_ledger(request) as ledger, driving(request, request.study, ledger, to_plain(request.config)) as lease:
        assert lease.epoch == 1
        ledger.begin(trial)
        ledger.settle(record)
        ledger.flush(60)
    return request.study, trial, record.to_dict()


def _ray_state(rng: random.Random, home: Path, bomb: bytes) -> None:
    """What Tune would restore from, in each folder of the study, before and while a real sweep runs there."""
    from muxfer.study.resolve import resolve

    sweep = Sweep(home, TINY)
    study = resolve("lr-width", TINY).home
    for folder in (study, study / ".ray-x", study / "trials", home / "trials", home / "tune", home / "ray_results"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (
            "tuner.pkl",
            "experiment_state-1.json",
            "searcher-state-1.pkl",
            "params.pkl",
            ".is_under_restoration",
        ):
            (folder / name).write_bytes(bomb)
    answer = sweep.run().expect(0).answer
    assert [trial["outcome"] for trial in answer["trials"]] == ["finished"]
