"""What is read back from where others may write: only files, and data of the form that a type's annotations give it.

Keys beyond the annotated ones are let be: another version of ours may have written them. What a user configures is
held to more (`muxfer.parse`).
"""

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any

MAX_INTEGER = 2**63
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}

Check = Callable[[Any, str], None]
"""Raises ValueError unless a value, which stands at that path, has a form."""


def expect(form: Any, data: Any, path: str = "") -> None:
    """ValueError, which says what stands where and what was expected, unless `data` has the form.

    A form is a dataclass, a TypedDict, a Mapping from text, a Sequence, a StrEnum, int, float, str, bool, None, a union
    of the last six, or Any. A number is finite, a whole one is a number too and has at most 63 bits.
    """
    _check_of(form)(data, path)


@cache
def _check_of(form: Any) -> Check:
    """A form's check, made once: a study has thousands of records."""
    if form is Any:
        return lambda value, path: None
    if typing.is_typeddict(form) or dataclasses.is_dataclass(form):
        return _keys_check(form)
    if typing.get_origin(form) is Mapping:
        return _mapping_check(_check_of(typing.get_args(form)[1]))
    if typing.get_origin(form) is Sequence:
        return _sequence_check(_check_of(typing.get_args(form)[0]))
    return _plain_check(typing.get_args(form) or (form,))


def _keys_check(form: Any) -> Check:
    checks = {name: _check_of(hint) for name, hint in typing.get_type_hints(form).items()}
    if typing.is_typeddict(form):
        required = form.__required_keys__
    else:
        nothing = dataclasses.MISSING
        required = {f.name for f in dataclasses.fields(form) if f.default is nothing and f.default_factory is nothing}

    def check(value: Any, path: str) -> None:
        _expect_keys(value, path)
        prefix = f"{path}." if path else ""
        for name, check_own in checks.items():
            if name in value:
                check_own(value[name], prefix + name)
            elif name in required:
                raise ValueError(f"{prefix}{name} is missing")

    return check


def _mapping_check(check_own: Check) -> Check:
    def check(value: Any, path: str) -> None:
        _expect_keys(value, path)
        for name, own in value.items():
            check_own(own, f"{path}.{name[:40]}")

    return check


def _sequence_check(check_own: Check) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{path} is {reprlib.repr(value)}: expected a list")
        for index, own in enumerate(value):
            check_own(own, f"{path}[{index}]")

    return check


def _plain_check(kinds: tuple[Any, ...]) -> Check:
    texts = tuple(str(word) for kind in kinds if issubclass(kind, StrEnum) for word in kind)
    words = [*texts, *(WORDS[kind] for kind in kinds if kind in WORDS)]
    allowed = {*kinds, int} if float in kinds else {*kinds}

    def check(value: Any, path: str) -> None:
        kind = type(value)
        right = kind in allowed or (kind is str and value in texts)
        if kind is int:
            right = right and -MAX_INTEGER < value < MAX_INTEGER
        elif kind is float:
            right = right and math.isfinite(value)
        if not right:
            raise ValueError(f"{path} is {reprlib.repr(value)}: expected {' or '.join(words)}")

    return check


def _expect_keys(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path or 'it'} is {reprlib.repr(value)}: expected keys and values")
