"""Secrets planted in a real sweep: in the configuration, the environment, the tracking URI, and the keys of S3.

Then every file, database cell, output and argument list of a process is searched for them. Each secret is looked for
as it is, and as a URI, JSON or a shell would write it. The sweep's model is the user's own: it takes a secret as an
argument and raises an error with it, because records must not keep secrets that other code writes either.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from urllib.parse import quote

from benchmarks.faults.harness.promise import assert_promise
from benchmarks.faults.harness.refusals import run_command
from benchmarks.faults.harness.server import serving
from benchmarks.faults.harness.settings import BRIEF, ROOT
from benchmarks.faults.harness.sweep import Sweep, new_folder, query
from muxfer.executors import ray_sessions

NAMES = (
    *("PLANTED_RAW", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD"),
    *("PLANTED_DESCRIPTION", "PLANTED_ARGUMENT", "PLANTED_ADDRESS", "PLANTED_URI", "PLANTED_CONF"),
    "MLFLOW_TRACKING_TOKEN",
)
OVERRULING = {"MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"}
"""In the environment these would overrule the password of a server's URI, so sweeps with a server do not have them."""
SERVER_ONLY = {"PLANTED_CONF"}
"""The user name in a server's URI."""
LITERAL = "PLANTED_RAW"
"""This secret is in no environment variable. It stands in URIs as it is, with a raw / and @."""
WORDS = {"DB_PASSWORD": "begin", "HF_TOKEN": "proxy", "X_TOKEN": "finished", "WORD_SECRET": "cafe"}
"""Secrets that are also words of muxfer's own records, or part of a trial's key.

They can't be kept out of records, and must not change them.
"""
MODULE = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, *, hidden, pixels, classes, token):
        super().__init__()
        self.token = token
        self.inward = nn.Linear(pixels, hidden)
        self.moment = nn.Linear(1, hidden)
        self.label = nn.Embedding(classes + 1, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.outward = nn.Linear(hidden, pixels)

    def forward(self, pixels, time, label):
        if pixels.device.type != "meta" and self.middle.in_features == 64:
            raise RuntimeError(f"https://hub.example/weights?token={self.token} refused {self.token}")
        h = self.inward(pixels.flatten(1)) + self.moment(time[:, None] / 1000) + self.label(label)
        return self.outward(torch.relu(h + self.middle(torch.relu(h)))).reshape(pixels.shape)
"""
MODEL = """
family: declared
target: planted_model:Mine
width: 32
base_width: 32
depth: 1
head_dim: 16
patch: 1
image_size: ${data.image_size}
channels: ${data.channels}
sizes: {hidden: width, pixels: channels * image_size * image_size, classes: num_classes}
arguments: {token: "${oc.env:PLANTED_ARGUMENT}"}
inputs: {pixels: image, time: timestep, label: labels}
readout: outward.weight
"""
LEDGER = """
tracking_uri: {uri}
experiment: muxfer
patience_seconds: 60.0
lease_seconds: 30.0
"""
OVERRIDES = (
    *("model=planted", "ledger=planted", "search.width=[32,64]", "search.base_lr=[2**-7]", "training.warmup_steps=2"),
    *("training.steps='${oc.decode:${oc.env:PLANTED_STEPS}}'", "training.checkpoint_every=10"),
    "evaluation.timesteps=1",
    "compute.slots=1" if BRIEF in os.environ else "compute.slots=2",
)
DESCRIPTION = (
    "of ${{oc.env:PLANTED_DESCRIPTION}}, see https://someone:{raw}@wiki.example/x, then postgresql://:{raw}@db"
)


def planted_secrets(seed: int, folder: Path, faults: int) -> int:
    """Run sweeps with a secret in every place that they have. Those with an even number have a server."""
    rng = random.Random(seed)
    done, server = 0, seed % 2 == 0
    while done < faults:
        names = [name for name in NAMES if name not in (OVERRULING if server else SERVER_ONLY)][: faults - done]
        values = {name: _raw(rng) if name == LITERAL else _value(rng) for name in NAMES}
        _run_and_search(new_folder(folder), values, {name: values[name] for name in names}, server=server)
        done, server = done + len(names), not server
    if BRIEF not in os.environ:
        sweep = Sweep(new_folder(folder), environment=WORDS)
        assert_promise(sweep, sweep.finish())
    return done


def _value(rng: random.Random) -> str:
    """A password: letters, digits, and characters that a URI, JSON and a shell each write in their own way."""
    return "".join(rng.choices("abcdefghjkmnpqrstuvwxyz", k=6)) + f"+{rng.randrange(10**6)}/Z@k%=9"


def _raw(rng: random.Random) -> str:
    words = ["".join(rng.choices("abcdefghjkmnpqrstuvwxyz", k=9)) for _ in range(3)]
    return "{}/{}@{}".format(*words)


def _run_and_search(home: Path, values: Mapping[str, str], secrets: Mapping[str, str], *, server: bool) -> None:
    """Run a sweep of which one trial of two fails, and other commands; then search everything for the secrets."""
    with serving(home) if server else nullcontext() as proxy:  # the server has no users: it accepts every password
        uri = "sqlite:///mlflow.db" if proxy is None else proxy.uri
        database = home / "mlflow.db" if proxy is None else proxy.database
        own = _write_study(home, values, uri, server=server)
        environment = {name: value for name, value in values.items() if name != LITERAL}
        environment |= {"PLANTED_STEPS": "20", "PLANTED_URI": quote(values["PLANTED_URI"], safe="")}
        if server:
            environment = {name: value for name, value in environment.items() if name not in OVERRULING}
        sweep = Sweep(home, OVERRIDES, environment=environment, database=database)
        with _watched(secrets) as seen:
            outputs = _run_commands(sweep, environment, values)
        assert not seen, seen
        for file in own:
            file.write_text("")  # the user's own files hold some secrets as they are, and muxfer did not write them
        for text in outputs:
            _search(text.encode(), text.partition(":")[0], secrets)
        for file in home.rglob("*"):
            if file.is_file():
                _search(file.read_bytes(), str(file.relative_to(home)), secrets)
        _search_cells(database, secrets)
        _assert_recorded_by_name(database)


def _write_study(home: Path, values: Mapping[str, str], uri: str, *, server: bool) -> list[Path]:
    """Write the model, its configuration, the ledger's and the sweep. Returns the files that hold secrets as text."""
    (home / "planted_model.py").write_text(MODULE)
    (home / "conf" / "model").mkdir(parents=True)
    (home / "conf" / "model" / "planted.yaml").write_text(MODEL)
    user = f"{quote(values['PLANTED_CONF'], safe='')}:${{oc.env:PLANTED_URI}}@"
    tracking_uri = uri.replace("://", f"://{user}") if server else uri
    ledger = home / "conf" / "ledger" / "planted.yaml"
    ledger.parent.mkdir()
    ledger.write_text(LEDGER.format(uri=json.dumps(tracking_uri)))
    description = json.dumps(DESCRIPTION.format(raw=values[LITERAL]))
    packaged = (ROOT / "sweeps" / "lr-width.yaml").read_text()
    study = home / "sweeps" / "lr-width.yaml"
    study.parent.mkdir()
    study.write_text(re.sub("(?m)^description: .*$", f"description: {description}", packaged))
    return [ledger, study]


def _run_commands(sweep: Sweep, env: Mapping[str, str], values: Mapping[str, str]) -> list[str]:
    """Run the sweep, its report and verdict, a refused sweep beside `muxfer ui`, config and status: their outputs."""
    outputs = []
    for command, arguments, code in (
        ("sweep", [], 3),
        ("report", [], 0),
        ("verdict", [], 6),
        ("sweep", ["compute.address=${oc.env:PLANTED_ADDRESS}"], 2),
    ):
        beside = _user_interface(sweep.folder, env, values["PLANTED_URI"]) if code == 2 else nullcontext()
        with beside:
            ended = sweep.run("--plugin", "planted_model", *arguments, command=command)
        assert ended.code == code, f"{command}: exit {ended.code}, expected {code}: {ended.err[-1500:]}"
        outputs.append(f"{command}: {ended.out}\n{ended.err}")
    code, out, err, _ = run_command(sweep.folder, ["config", "lr-width", *OVERRIDES], env)
    assert code == 0, err
    assert "${oc.env:PLANTED_ARGUMENT}" in out, out
    outputs.append(f"config: {out}{err}")
    away = {"MLFLOW_TRACKING_URI": f"postgresql://someone:{values[LITERAL]}@127.0.0.1:9/none"}
    code, out, err, _ = run_command(sweep.folder, ["status"], {**env, **away})
    assert code == 2, err
    return [*outputs, f"status: {out}{err}"]


def _assert_recorded_by_name(database: Path) -> None:
    """`${oc.env:NAME}` must be recorded as such."""
    tags = "".join(value for (value,) in query(database, "select value from tags where key like 'muxfer.%'"))
    params = dict(query(database, "select key, value from params"))
    argument = "${oc.env:PLANTED_ARGUMENT}"
    for text in (argument, "of ${oc.env:PLANTED_DESCRIPTION}", "${oc.decode:${oc.env:PLANTED_STEPS}}"):
        assert text in tags, f"{text} was not recorded as such"
    assert argument in params["model.arguments"], params


def _search_cells(database: Path, secrets: Mapping[str, str]) -> None:
    for (table,) in query(database, "select name from sqlite_master where type = 'table'"):
        for row in query(database, f'select * from "{table}"'):
            _search(repr(row).encode(), f"table {table}", secrets)


def _search(content: bytes, where: str, secrets: Mapping[str, str]) -> None:
    for name, value in secrets.items():
        for form in _forms(value):
            place = content.find(form)
            around = content[max(0, place - 60) : place + 20]
            assert place < 0, f"{name} stands in {where}: ...{around!r}..., which begins with {content[:100]!r}"


@cache
def _forms(value: str) -> frozenset[bytes]:
    forms = {value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], value[2:]}
    forms |= {part for part in re.split("[/@]", value) if len(part) > 8}
    return frozenset(form.encode() for form in forms)


@contextmanager
def _watched(secrets: Mapping[str, str]) -> Iterator[list[str]]:
    """Search the arguments of every process, and Ray's logs, again and again. Yields the list of what was seen.

    Tune's own state holds the tasks and is not searched. Only this user may enter its folder, which goes away with Ray.
    """
    seen: list[str] = []
    known: dict[Path, tuple[int, int]] = {}
    over = threading.Event()
    began = time.time()

    def look() -> None:
        while not over.wait(0.2):
            files = [*Path("/proc").glob("[0-9]*/cmdline")]
            with suppress(OSError):
                for session in ray_sessions.parent_folder().glob("muxfer-*/r/session_2*"):
                    if session.stat().st_mtime >= began - 5:
                        if session.parents[1].stat().st_mode & 0o077:
                            seen.append(f"others may enter {session.parents[1]}")
                        files += [file for file in (session / "logs").rglob("*") if file.is_file()]
            for file in files:
                with suppress(OSError):
                    size = file.stat().st_size, file.stat().st_mtime_ns
                    if size[0] and known.get(file) == size:  # nothing was written to it since
                        continue
                    known[file] = size
                    content = file.read_bytes()
                    try:
                        _search(content, str(file), secrets)
                    except AssertionError as error:
                        seen.append(str(error))
            if seen:
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(30)


@contextmanager
def _user_interface(home: Path, env: Mapping[str, str], secret: str) -> Iterator[None]:
    """Run `muxfer ui` on a database with a password for up to six seconds, so that its arguments are watched."""
    uri = f"postgresql://someone:{secret}@127.0.0.1:9/none"
    with subprocess.Popen(
        [sys.executable, "-m", "muxfer", "ui", "--port", "0"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env, "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        began = time.monotonic()
        try:
            yield
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, began + 6 - time.monotonic()))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
