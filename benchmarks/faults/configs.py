"""Configurations that cannot work: malformed, enormous, mutated. Each must end as a plan, or as one line and exit 2.

Three kinds: override strings, files of YAML in ./sweeps and ./conf, and plain data as a composition leaves them. A
mutation may happen to be valid; then it must come to trials. No case may take five seconds of the processor.
"""

import copy
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.bench import ROOT, new_folder
from muxfer.errors import BadInput

CPU_SECONDS = 5.0
"""Of its own: another case runs beside it, and the time on the wall is not ours."""
WALL_SECONDS = 60.0
REFUSED = 0.5
"""Of a batch at least so many must be refused, or what follows is no test of refusals: 96 to 98 of 100 were."""
NAME = "mine"

OVERRIDES = (
    "training.steps=100",
    "search.width=[16,32]",
    "search.base_lr=[2**-8,1e-3]",
    "search.base_lr={log_uniform:[1e-4,1e-2]}",
    "search.sampler=tpe",
    "search.num_settings=8",
    "model.depth=2",
    "model=pixart",
    "+size=xl_2",
    "scale=paper",
    "optimizer.parametrization=standard",
    "data=image_folder",
    "data.path=pictures",
    "output_dir=${oc.env:HOME}/x",
    "ledger.tracking_uri=sqlite:///a.db",
    "ledger.experiment=mine",
    "description='a b'",
    "target.width=256",
    "~target",
    "++evaluation.guidance=1.5",
    "compute.slots=2",
    "check=depth",
)
WORDS = """
nan .nan inf -inf 1e400 -1e400 1e-400 0 -0.0 -1 0x10 0o7 1_000 1:30 null ~ true off '' 2^-7 2**-7 2^999 2^99999 2**9999
18446744073709551616 é ı ﬁ ａ １ \u202e\u2066 \u200b \ufeff \ud7ff \U0001f4a3 ../x /etc/passwd a/../b % $ ${ ${} ${.
${model} ${model.width} ${..} ${search} ${oc.env:HOME} ${oc.env:NOT_SET} ${oc.env:${scale}} ${oc.select:model}
${oc.create:${model}} ${hydra:runtime.cwd} ${oc.decode:${oc.env:HOME}} ${${scale}} ??? !!python/name:os.system
range(1,1000000000) choice(1,2) interval(0,1) glob(*) sort(3,1) shuffle(1,2) int(x) float(nan) json_str({a:1})
tag(log,1) {} [] [[]] {a:[]} [nan] [1,1] {uniform:[2,1]} {choice:[]} {grid:[1]} {uniform:[-inf,inf],log2:true}
"""
LONG = ("9" * 5000, "[" * 60 + "]" * 60, "{a:" * 60 + "}" * 60, "x" * 1900, "a b", "a\tb", "'", '"', "\\", "1,2")
SCALARS = (*WORDS.split(), *LONG)
LETTERS = "=+~@.,:[]{}()'\"$\\/*&!|>%#-_ \t\n\0\x1b09azé\u202e\ud7ff"

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
HIDDEN_BOMB = BOMB.replace("[*", "['#', *")
FILES: tuple[str, ...] = (
    BOMB,
    HIDDEN_BOMB,
    "base: &b {x: 1}\nsearch:\n  <<: *b\n",
    "".join(f"k{i}: ${{k{i + 1}}}${{k{i + 1}}}\n" for i in range(40)) + "k40: x\n",
    "".join(f"k{i}: ['${{k{i + 1}}}', '${{k{i + 1}}}']\n" for i in range(40)) + "k40: [1]\n",
    "description: ${description}\n",
    "model: ${model}\n",
    "a: ${b}\nb: ${a}\n",
    "defaults: [base, mine, _self_]\n",
    "defaults: [base, ../../../../etc/passwd, _self_]\n",
    "defaults: [base, /model@a: ../../x, _self_]\n",
    "defaults: 5\n",
    "defaults: [5, null, [], {}]\n",
    "defaults: [{a: {b: c}}]\n",
    "defaults: [base, _self_, _self_]\n",
    "defaults: [base, override model: [dit, pixart]]\n",
    "hydra: {searchpath: ['file:///etc']}\n",
    "# @package ../../x\na: 1\n",
    "# @package _global_.hydra\na: 1\n",
    "_target_: os.system\nmodel: {_target_: subprocess.call, _args_: [[ls]]}\n",
    "!!python/object/apply:os.system ['touch canary']\n",
    "a: !!python/object/apply:pathlib.Path [canary]\n",
    "a: !!binary aGVsbG8=\n",
    "a: !!set {x, y}\n",
    "? [1, 2]\n: x\n",
    "? {a: 1}\n: x\n",
    "{1: 2, true: 3, null: 4, 1.5: 5}\n",
    "a: 2001-99-99\nb: 12:99:99\n",
    "--- a\n--- b\n",
    "%YAML 9.9\n---\na: 1\n",
    "a: |\n  " + "x" * 49_000 + "\n",
    "".join(f"k{i}: {i}\n" for i in range(4500)),
    "x" * 200_000,
    "[" * 20_000,
    "- " * 20_000,
    "{a: " * 12_000,
    "a: " + "9" * 6000 + "\n",
    "a: 'unclosed\n",
    "\ta: 1\n",
    "a: 1\na: 2\n",
    "\x00",
    "a: \x1b[2J\n",
    "5\n",
    "null\n",
    "[]\n",
    "",
)
"""None of them may be taken for a sweep as it stands."""


def in_process(seed: int, folder: Path, faults: int) -> int:
    """Mutate, compose, parse, and list the trials: a plan, or BadInput in one line; nothing is ever made by it."""
    from muxfer.redaction import one_line

    rng = random.Random(seed)
    os.environ.pop("NOT_SET", None)
    os.chdir(folder)
    before = sorted(folder.rglob("*"))
    plain = _composed()
    for text in FILES:
        _write(folder / "sweeps" / f"{NAME}.yaml", text.encode())
        assert _refused(lambda: _plan(NAME, [])), f"it was taken: {text[:300]!r}"
    shutil.rmtree(folder / "sweeps")
    refused = 0
    for number in range(faults):
        told, act = _mutation(rng, folder, plain)
        try:
            with _limited():
                act()
        except BadInput as error:
            refused += 1
            line = one_line(str(error))
            assert 0 < len(line) <= 1000, f"{number}: {told}: {line!r}"
            assert line.isprintable(), f"{number}: {told}: {line!r}"
        except (Exception, TooLong) as error:
            raise AssertionError(f"{number}: {type(error).__name__}: {error}: {told}") from error
        for file in (folder / "sweeps", folder / "conf"):
            subprocess.run(["rm", "-rf", str(file)], check=True) if file.exists() else None
        assert sorted(folder.rglob("*")) == before, f"{number}: something was made: {told}"
    assert refused >= REFUSED * faults, f"only {refused} of {faults} were refused"
    return faults


def _refused(act: Callable[[], None]) -> bool:
    try:
        with _limited():
            act()
    except BadInput:
        return True
    return False


def by_command(seed: int, folder: Path, faults: int) -> int:
    """The same through the real command: exit 2 with one line, or a valid answer; never a traceback."""
    rng = random.Random(seed)
    refused = 0
    for number in range(faults):
        home = new_folder(folder, number)
        special = False
        if rng.random() < 0.5:
            arguments = _overrides(rng)
        else:
            special = rng.random() < 0.4
            arguments = _special(rng, home) if special else _yaml(rng, home)
        name = NAME if (home / "sweeps" / f"{NAME}.yaml").is_symlink() or (home / "sweeps").is_dir() else "lr-width"
        command, more = rng.choice([("sweep", ["--dry-run"]), ("plan", []), ("config", []), ("sweep", ["--dry-run"])])
        arguments = [word for word in arguments if "\0" not in word]
        code, out, err, seconds = _typed(home, [command, name, *more, "--", *arguments])
        told = f"{number}: muxfer {command} {name} {str(arguments)[:300]} in {home}: {err[-1500:]}"
        assert code in ((2,) if special or _as_it_stands(home) else (0, 2)), f"exit {code}: {told}"
        refused += code == 2
        assert "Traceback" not in err, told
        assert seconds < CPU_SECONDS, f"{seconds:.1f} s: {told}"
        if code == 2:
            assert out == "", told
            assert err.startswith("muxfer: "), told
            assert err.count("\n") == 1, told
        assert not (home / "canary").exists(), told
    assert refused >= REFUSED * faults, f"only {refused} of {faults} were refused"
    return faults


def _as_it_stands(home: Path) -> bool:
    """Whether the sweep's own file is one of FILES, whole and unchanged."""
    file = home / "sweeps" / f"{NAME}.yaml"
    return file.is_file() and file.read_bytes() in {text.encode() for text in FILES}


def _typed(home: Path, words: Sequence[str]) -> tuple[int, str, str, float]:
    """A command's exit code, its two outputs, and its seconds of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "muxfer", *(os.fsencode(word) for word in words)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WALL_SECONDS,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), seconds


def _mutation(rng: random.Random, folder: Path, plain: Mapping[str, Any]) -> tuple[str, Callable[[], None]]:
    kind = rng.random()
    if kind < 0.4:
        overrides = _overrides(rng)
        return f"overrides {overrides}"[:3000], lambda: _plan("lr-width", overrides)
    if kind < 0.6:
        overrides = _yaml(rng, folder)
        texts = [file.read_bytes()[:1500] for file in folder.rglob("*.yaml")]
        name = NAME if (folder / "sweeps").is_dir() else "lr-width"
        return f"{name} {overrides}, files {texts}", lambda: _plan(name, overrides)
    data = _mutated(rng, copy.deepcopy(dict(plain)))
    try:
        told = f"data {data}"[:5000]
    except (RecursionError, ValueError):  # too deep, or too long a number, to be written
        told = f"data of {', '.join(map(str, data))}"[:5000]
    return told, lambda: _plan_of(data)


def _plan(name: str, overrides: Sequence[str]) -> None:
    """As `muxfer sweep NAME --dry-run` does it, up to the trials."""
    from muxfer.study.resolve import resolve
    from muxfer.study.rounds import proposing

    request = resolve(name, overrides, planned=True)
    proposing(request.config, fingerprint=request.fingerprint)([])


def _plan_of(data: Mapping[str, Any]) -> None:
    from dataclasses import replace

    from muxfer.config.models import with_num_classes
    from muxfer.config.parse import parse
    from muxfer.study.resolve import output_folder
    from muxfer.study.rounds import proposing
    from muxfer.study.trials import study_of

    config = parse(data)
    config = replace(config, model=with_num_classes(config.model, 10))
    study_of("lr-width", config, fingerprint="0" * 16)
    output_folder(config)
    proposing(config, fingerprint="0" * 16)([])


def _composed() -> Mapping[str, Any]:
    from muxfer.config.hydra_compose import compose

    return compose("lr-width")


def _overrides(rng: random.Random) -> list[str]:
    given = [rng.choice(OVERRIDES) for _ in range(rng.randint(1, 4))]
    at = rng.randrange(len(given))
    key, sign, value = given[at].partition("=")
    act = rng.randrange(6)
    if act == 0:
        given[at] = f"{key}{sign}{rng.choice(SCALARS)}"
    elif act == 1:
        given[at] = f"{rng.choice(SCALARS)}={value}"
    elif act == 2:
        given[at] = f"{key}{sign}[{','.join(rng.choice(SCALARS) for _ in range(rng.randint(0, 5)))}]"
    elif act == 3:
        given[at] = rng.choice(["", "+", "++", "~", "@"]) + given[at] + rng.choice(["", "@x", "=", " ", "="])
    else:
        text = list(given[at])
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 3)] = rng.choices(LETTERS, k=rng.randint(0, 4))
        given[at] = "".join(text)
    if rng.random() < 0.02:
        given *= rng.choice([2, 60, 300])
    return given


def _yaml(rng: random.Random, folder: Path) -> list[str]:
    """A file in ./sweeps or ./conf/model, and the overrides that make it count."""
    from muxfer.config.hydra_compose import packaged

    text = rng.choice(FILES)
    if rng.random() < 0.6:
        known = sorted(packaged("conf").rglob("*.yaml")) + sorted(packaged("sweeps").glob("*.yaml"))
        text = _mutated_lines(rng, rng.choice(known).read_text())
    content = text.encode(errors="surrogatepass")
    if rng.random() < 0.05:
        content = rng.choice([b"\xff\xfe", b"\xef\xbb\xbf", bytes(rng.randrange(256) for _ in range(40))]) + content
    if rng.random() < 0.6:
        _write(folder / "sweeps" / f"{NAME}.yaml", content)
        return []
    group = rng.choice(["model", "search", "training", "optimizer", "data", "scale"])
    _write(folder / "conf" / group / f"{NAME}.yaml", content)
    return [f"{group}={NAME}"]


def _special(rng: random.Random, home: Path) -> list[str]:
    """What stands where a file is expected and is none: it must not block, nor be followed for ever."""
    file = home / rng.choice(["sweeps", "conf/model"]) / f"{NAME}.yaml"
    file.parent.mkdir(parents=True)
    kind = rng.randrange(6)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(file.name)
    elif kind == 3:
        file.symlink_to("/dev/zero")
    elif kind == 4:
        file.symlink_to("nowhere")
    else:
        file.write_bytes(b"a: 1\n" * 2_000_000)
    return [f"model={NAME}"] if file.parent.name == "model" else []


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _mutated_lines(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines) + 1)
        line = lines[place] if place < len(lines) else "x: 1"
        key, colon, _ = line.partition(":")
        changed = [
            [f"{key}{colon} {rng.choice(SCALARS)}"],
            [f"{key} {rng.choice(SCALARS)}"],
            [line, line],
            [],
            [" " * rng.randint(1, 5) + line],
            [line[: rng.randrange(len(line) + 1)] + rng.choice(LETTERS) + line[rng.randrange(len(line) + 1) :]],
            rng.choice(FILES).splitlines()[:50],
        ]
        lines[place : place + 1] = rng.choice(changed)
    return "\n".join(lines) + "\n"


VALUES: tuple[Any, ...] = (
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        1e308,
        5e-324,
        -0.0,
        0,
        -1,
        1,
        True,
        False,
        None,
        10**400,
        -(10**5000),
    ),
    *(
        2**63,
        2**62,
        10**18,
        10**6,
        7,
        0.5,
        1e400,
        "",
        " ",
        "x" * 100_000,
        "\0",
        "\n",
        "\x1b[2J",
        "\ud800",
        "\u202e",
        "../x",
    ),
    *("2^-7", "2^99999", "2^-999.9", "nan", "1e5", "dit", "declared", "tpe", "gp", "isoflop", "completep", "~nobody/x"),
    *([], {}, [[]], {"": 1}, {1: 2}, {None: None}, [None], [float("nan")] * 3, ["2^-7", "2^-5"], list(range(30_000))),
    *({"uniform": [1, 2]}, {"choice": [1, 1]}, {"grid": []}, {"uniform": [0, float("nan")]}, {"integer": [1, 10**30]}),
    *({"name": []}, {"name": "digits"}, {"family": {}}, b"bytes", 1j, ("a",), {"a", "b"}),
    *("sqlite://///" + "x" * 300, "http://[::1", "http://h\u2100x/", "sqlite:///a\0b", "postgresql://u:p@h:99999999/x"),
)


def _mutated(rng: random.Random, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data with a few leaves or branches replaced, removed or added."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(data))
        parent, key = rng.choice(places)
        act = rng.random()
        if act < 0.75:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif act < 0.85:
            del parent[key]
        elif isinstance(parent, dict):
            parent[rng.choice(["x", "", "\n", "a.b", "é", "x" * 5000, "ｗidth", 5, None])] = rng.choice(VALUES)
        if act > 0.95:
            deep: Any = 1
            for _ in range(rng.choice([10, 3000])):
                deep = [deep]
            data[rng.choice(["model", "search", "description"])] = deep
        if not data:
            break
    return data


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        keys: Sequence[Any] = list(value)
    elif isinstance(value, list) and len(value) < 50:
        keys = range(len(value))
    else:
        return
    for key in keys:
        yield value, key
        if not (isinstance(value, list) and len(value) == 1):
            yield from _places(value[key])


class TooLong(BaseException):
    """Not an Exception: what reads bad input turns those into a refusal."""


@contextmanager
def _limited() -> Iterator[None]:
    """Fail what takes too long: of the processor, or of the clock where it only waits."""

    def stop(signum: int, frame: object) -> None:
        raise TooLong(f"it took more than {CPU_SECONDS:g} s")

    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
