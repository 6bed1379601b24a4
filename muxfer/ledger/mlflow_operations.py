"""Validate a write that was read back from a spool, and the files that it may attach, before MLflow gets it.

A spool lies in a study's folder, and that folder may come from other people. Anything that no version of muxfer writes
is refused here. It could stop every replay (a number that no database takes), or send away a file from outside the
study.
"""

import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from muxfer.ledger.base import Operation
from muxfer.ledger.mlflow_tags import validate_key
from muxfer.trial import Point, Record
from muxfer.validate import expect

MAX_INTEGER = 2**53  # The bound of a time, a step and an epoch: sums of them must fit into 63 bits
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""Characters that some database refuses in a text: NUL and unpaired surrogates."""


class _Begin(TypedDict):
    key: str
    epoch: int
    name: str
    start_ms: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    task: Mapping[str, Any]


class _Points(TypedDict):
    key: str
    epoch: NotRequired[int]
    points: Any


class _Settle(TypedDict):
    key: str
    epoch: int
    end_ms: int
    record: Record


class _File(TypedDict):
    key: str | None
    path: str


class _Text(TypedDict):
    key: str | None
    name: str
    text: str


class _Rest(TypedDict):
    key: NotRequired[None]
    epoch: int
    end_ms: int
    paused: Any


class _Duplicates(TypedDict):
    key: str


FORMS: dict[str, Any] = {"begin": _Begin, "points": _Points, "settle": _Settle, "file": _File}
FORMS |= {"text": _Text, "rest": _Rest, "duplicates": _Duplicates}


def validate_operation(operation: Operation) -> None:
    """Raise ValueError, with what is wrong, unless some version of muxfer may have written the operation."""
    kind = operation.get("op")
    if not isinstance(kind, str) or kind not in FORMS:
        raise ValueError(f"op is {reprlib.repr(kind)}: expected one of {', '.join(FORMS)}")
    expect(FORMS[kind], operation)
    points = [_point(triple) for triple in _list(operation, "points")] if kind == "points" else []
    paused = _list(operation, "paused") if kind == "rest" else []
    for key in paused if operation.get("key") is None else [operation["key"]]:
        validate_key(key)
    numbers = [operation[name] for name in ("epoch", "start_ms", "end_ms") if name in operation]
    numbers += [point["step"] for point in points]
    if kind == "settle":
        numbers.append(operation["record"]["step"])
    if any(not 0 <= number < MAX_INTEGER for number in numbers):
        raise ValueError("expected times, steps and epochs from 0 to 2^53")
    texts = [point["name"] for point in points]
    if kind == "begin":
        pairs = (*operation["tags"].items(), *operation["params"].items())
        texts += [operation["name"], *(text for pair in pairs for text in pair)]
    if any(UNSTORABLE.search(text) for text in texts):
        raise ValueError("expected texts without NUL and unpaired surrogates")


def _list(operation: Operation, name: str) -> list[Any]:
    value = operation[name]
    if not isinstance(value, list):
        raise ValueError(f"{name} is {reprlib.repr(value)}: expected a list")
    return value


def _point(triple: Any) -> dict[str, Any]:
    if not isinstance(triple, list) or len(triple) != 3:
        raise ValueError(f"a point is {reprlib.repr(triple)}: expected name, step and value")
    point = dict(zip(("name", "step", "value"), triple, strict=True))
    expect(Point, point, "point")
    return point


def spooled_path(path: Path, home: Path) -> str:
    """The path that a spool stores for a file: relative to the study's folder `home`, so that the folder may move."""
    path = path.absolute()
    return str(path.relative_to(home) if path.is_relative_to(home) else path)


def resolve_spooled_path(path: str, home: Path) -> Path:
    """The file that a spooled path names. ValueError if it lies outside `home`, also if a link leads there."""
    real = Path(os.path.realpath(home / path))
    if Path(os.path.realpath(home)) not in real.parents:
        raise ValueError(f"{path[:200]!r} lies outside {home}: expected a file of the study")
    return home / path
