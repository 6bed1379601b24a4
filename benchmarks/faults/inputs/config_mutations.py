"""Random mutations of override strings, YAML files and plain data, and special files in place of regular ones."""

import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from muxfer.config.hydra_compose import packaged

NAME = "mine"
OVERRIDES = (
    *("training.steps=100", "search.width=[16,32]", "search.base_lr=[2**-8,1e-3]"),
    *("search.base_lr={log_uniform:[1e-4,1e-2]}", "search.sampler=tpe", "search.num_settings=8", "model.depth=2"),
    *("model=pixart", "+size=xl_2", "scale=paper", "optimizer.parametrization=standard", "data=image_folder"),
    *("data.path=pictures", "output_dir=${oc.env:HOME}/x", "ledger.tracking_uri=sqlite:///a.db"),
    *("ledger.experiment=mine", "description='a b'", "target.width=256", "~target", "++evaluation.guidance=1.5"),
    *("compute.slots=2", "check=depth"),
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
BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijkl"))
HIDDEN_BOMB = BOMB.replace("[*", "['#', *")
FILES: tuple[str, ...] = (
    BOMB,
    HIDDEN_BOMB,
    "base: &b {x: 1}\nsearch:\n  <<: *b\n",
    "".join(f"k{i}: ${{k{i + 1}}}${{k{i + 1}}}\n" for i in range(40)) + "k40: x\n",
    "".join(f"k{i}: ['${{k{i + 1}}}', '${{k{i + 1}}}']\n" for i in range(40)) + "k40: [1]\n",
    *("description: ${description}\n", "model: ${model}\n", "a: ${b}\nb: ${a}\n", "defaults: [base, mine, _self_]\n"),
    *("defaults: [base, ../../../../etc/passwd, _self_]\n", "defaults: [base, /model@a: ../../x, _self_]\n"),
    *("defaults: 5\n", "defaults: [5, null, [], {}]\n", "defaults: [{a: {b: c}}]\n"),
    *("defaults: [base, _self_, _self_]\n", "defaults: [base, override model: [dit, pixart]]\n"),
    *("hydra: {searchpath: ['file:///etc']}\n", "# @package ../../x\na: 1\n", "# @package _global_.hydra\na: 1\n"),
    "_target_: os.system\nmodel: {_target_: subprocess.call, _args_: [[ls]]}\n",
    *("!!python/object/apply:os.system ['touch canary']\n", "a: !!python/object/apply:pathlib.Path [canary]\n"),
    *("a: !!binary aGVsbG8=\n", "a: !!set {x, y}\n", "? [1, 2]\n: x\n", "? {a: 1}\n: x\n"),
    *("{1: 2, true: 3, null: 4, 1.5: 5}\n", "a: 2001-99-99\nb: 12:99:99\n", "--- a\n--- b\n"),
    *("%YAML 9.9\n---\na: 1\n", "a: |\n  " + "x" * 49_000 + "\n", "".join(f"k{i}: {i}\n" for i in range(4500))),
    *("x" * 200_000, "[" * 20_000, "- " * 20_000, "{a: " * 12_000, "a: " + "9" * 6000 + "\n", "a: 'unclosed\n"),
    *("\ta: 1\n", "a: 1\na: 2\n", "\x00", "a: \x1b[2J\n", "5\n", "null\n", "[]\n", ""),
)
"""None of these may be accepted as a sweep without a mutation."""
VALUES: tuple[Any, ...] = (
    *(float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, -0.0, 0, -1, 1, True, False, None, 10**400),
    *(-(10**5000), 2**63, 2**62, 10**18, 10**6, 7, 0.5, 1e400, "", " ", "x" * 100_000, "\0", "\n", "\x1b[2J"),
    *("\ud800", "\u202e", "../x", "2^-7", "2^99999", "2^-999.9", "nan", "1e5", "dit", "declared", "tpe", "gp"),
    *("isoflop", "completep", "~nobody/x", [], {}, [[]], {"": 1}, {1: 2}, {None: None}, [None], [float("nan")] * 3),
    *(["2^-7", "2^-5"], list(range(30_000)), {"uniform": [1, 2]}, {"choice": [1, 1]}, {"grid": []}),
    *({"uniform": [0, float("nan")]}, {"integer": [1, 10**30]}, {"name": []}, {"name": "digits"}, {"family": {}}),
    *(b"bytes", 1j, ("a",), {"a", "b"}, "sqlite://///" + "x" * 300, "http://[::1", "http://h\u2100x/"),
    *("sqlite:///a\0b", "postgresql://u:p@h:99999999/x"),
)


def mutated_overrides(rng: random.Random) -> list[str]:
    """One to four overrides, one of them changed; sometimes repeated many times."""
    overrides = [rng.choice(OVERRIDES) for _ in range(rng.randint(1, 4))]
    at = rng.randrange(len(overrides))
    key, sign, value = overrides[at].partition("=")
    act = rng.randrange(6)
    if act == 0:
        overrides[at] = f"{key}{sign}{rng.choice(SCALARS)}"
    elif act == 1:
        overrides[at] = f"{rng.choice(SCALARS)}={value}"
    elif act == 2:
        overrides[at] = f"{key}{sign}[{','.join(rng.choice(SCALARS) for _ in range(rng.randint(0, 5)))}]"
    elif act == 3:
        overrides[at] = rng.choice(["", "+", "++", "~", "@"]) + overrides[at] + rng.choice(["", "@x", "=", " ", "="])
    else:
        text = list(overrides[at])
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 3)] = rng.choices(LETTERS, k=rng.randint(0, 4))
        overrides[at] = "".join(text)
    if rng.random() < 0.02:
        overrides *= rng.choice([2, 60, 300])
    return overrides


def mutated_file(rng: random.Random, folder: Path) -> list[str]:
    """Write a file to ./sweeps or to a group of ./conf. Returns the overrides that select it."""
    text = rng.choice(FILES)
    if rng.random() < 0.6:
        known = sorted(packaged("conf").rglob("*.yaml")) + sorted(packaged("sweeps").glob("*.yaml"))
        text = _mutated_lines(rng, rng.choice(known).read_text())
    content = text.encode(errors="surrogatepass")
    if rng.random() < 0.05:
        content = rng.choice([b"\xff\xfe", b"\xef\xbb\xbf", bytes(rng.randrange(256) for _ in range(40))]) + content
    if rng.random() < 0.6:
        write_file(folder / "sweeps" / f"{NAME}.yaml", content)
        return []
    group = rng.choice(["model", "search", "training", "optimizer", "data", "scale"])
    write_file(folder / "conf" / group / f"{NAME}.yaml", content)
    return [f"{group}={NAME}"]


def special_file(rng: random.Random, home: Path) -> list[str]:
    """Put a pipe, a folder, a link, a device or a huge file in place of a file. It must not block the reader.

    Returns the overrides that select it.
    """
    file = home / rng.choice(["sweeps", "conf/model"]) / f"{NAME}.yaml"
    file.parent.mkdir(parents=True)
    links = (partial(os.symlink, target) for target in (file.name, "/dev/zero", "nowhere"))
    huge = partial(Path.write_bytes, data=b"a: 1\n" * 2_000_000)
    makers: list[Callable[[Path], object]] = [os.mkfifo, os.mkdir, *links, huge]
    rng.choice(makers)(file)
    return [f"model={NAME}"] if file.parent.name == "model" else []


def write_file(file: Path, content: bytes) -> None:
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


def mutated_data(rng: random.Random, data: dict[str, Any]) -> dict[str, Any]:
    """Replace, remove or add a few leaves or branches of plain data."""
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
    """Every (container, key) of nested data. Long lists are skipped; an only element is not searched."""
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
