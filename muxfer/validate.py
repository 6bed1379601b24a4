"""Read plain data by the annotations of a form. This is the one reader of annotations.

A `Policy` says how strictly data is read. `expect` reads what a ledger or a file holds. It allows unknown keys, because
another version of muxfer may have written them. `config.parse` reads what a user configures, and refuses more.
"""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from muxfer.errors import nearest

MAX_INTEGER = 2**63
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
PLURALS = {int: " of numbers", float: " of numbers", str: " of texts"}

Reader = Callable[[Any, str], Any]
"""Reads the value at a path, and returns it as its form has it. Raises the policy's error for any other value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """How strictly data is read, and how a refusal is worded."""

    error: type[Exception] = ValueError
    remedy: str = ""  # Ends the message on a missing key. `{}` stands for the key's path.
    build: Callable[[Any, dict[str, Any]], Any] = lambda form, values: values
    """Makes the result of a dataclass or TypedDict from its values."""
    validate_keys: Callable[[Collection[Any], Collection[str], str], None] = lambda keys, known, prefix: None
    """Refuses unknown keys; `prefix` stands before a key in its path."""
    convert: Callable[[tuple[Any, ...], Any, str], Any] | None = None
    """Converts a plain value before it is validated, given its kinds. None: a value stays as it is."""
    readers: Mapping[Any, Reader] = field(default_factory=lambda: {Any: lambda value, path: value})
    """The forms that are read in another way."""


LENIENT = Policy()


def expect(form: Any, data: Any, path: str = "") -> None:
    """Validate that `data` has the form (see `reader_of`); more keys are allowed. ValueError says what was expected."""
    reader_of(form, LENIENT)(data, path)


@cache
def reader_of(form: Any, policy: Policy) -> Reader:
    """The reader of a form. It is made once, because a study has thousands of records.

    A form is a dataclass, a TypedDict, a Mapping from text, a Sequence or tuple of one kind, or Any. A union of
    dataclasses is told apart by their literal `name` (`family` of a model). A plain form is a StrEnum, a Literal, int,
    float, str, bool, None, or a union of these. A number is finite. A whole number has at most 63 bits, and is a number
    too.
    """
    if form in policy.readers:
        return policy.readers[form]
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if typing.is_typeddict(form) or dataclasses.is_dataclass(form):
        return _keys_reader(form, policy)
    if origin is Mapping:
        return _mapping_reader(arguments[1], policy)
    if origin in (Sequence, tuple):
        return _sequence_reader(arguments[0], policy)
    kinds = arguments if origin in (types.UnionType, typing.Union) else (form,)
    if dataclasses.is_dataclass(kinds[0]):
        return _union_reader(kinds, policy)
    return _plain_reader(kinds, policy)


def _keys_reader(form: Any, policy: Policy) -> Reader:
    readers = {name: reader_of(hint, policy) for name, hint in typing.get_type_hints(form).items()}
    if typing.is_typeddict(form):
        required = form.__required_keys__
    else:
        nothing = dataclasses.MISSING
        required = {f.name for f in dataclasses.fields(form) if f.default is nothing and f.default_factory is nothing}

    def read(value: Any, path: str) -> Any:
        expect_keys(value, path, policy)
        prefix = f"{path}." if path else ""
        policy.validate_keys(value, readers, prefix)
        values = {}
        for name, reader in readers.items():
            if name in value:
                values[name] = reader(value[name], prefix + name)
            elif name in required:
                raise policy.error(f"{prefix}{name} is missing{policy.remedy.format(prefix + name)}")
        return policy.build(form, values)

    return read


def _mapping_reader(form: Any, policy: Policy) -> Reader:
    reader = reader_of(form, policy)

    def read(value: Any, path: str) -> Any:
        expect_keys(value, path, policy)
        if not all(isinstance(name, str) for name in value):
            raise policy.error(f"{path} is {shown(value)}: expected keys that are text")
        return {name: reader(item, f"{path}.{name[:40]}") for name, item in value.items()}

    return read


def _sequence_reader(form: Any, policy: Policy) -> Reader:
    reader = reader_of(form, policy)

    def read(value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple):
            raise policy.error(f"{path} is {shown(value)}: expected a list{PLURALS.get(form, '')}")
        return tuple(reader(item, f"{path}[{index}]") for index, item in enumerate(value))

    return read


def _union_reader(kinds: tuple[Any, ...], policy: Policy) -> Reader:
    """The reader of one dataclass or None, or of several dataclasses that differ in their tag."""
    if kinds[1] is types.NoneType:
        reader = reader_of(kinds[0], policy)
        return lambda value, path: None if value is None else reader(value, path)
    tag = "family" if "family" in typing.get_type_hints(kinds[0]) else "name"
    readers = {typing.get_args(typing.get_type_hints(kind)[tag])[0]: reader_of(kind, policy) for kind in kinds}

    def read(value: Any, path: str) -> Any:
        name = value.get(tag) if isinstance(value, Mapping) else value
        if not isinstance(name, str) or name not in readers:
            raise policy.error(f"{path}.{tag} is {shown(name)}: {nearest(shown(name), readers)}")
        return readers[name](value, path)

    return read


def _plain_reader(kinds: tuple[Any, ...], policy: Policy) -> Reader:
    literal = [typing.get_args(kind) or (kind if issubclass(kind, StrEnum) else ()) for kind in kinds]
    choices = tuple(itertools.chain(*literal))
    words = [*map(str, choices), *(WORDS[kind] for kind in kinds if kind in WORDS)]
    allowed = {*kinds, int} if float in kinds else {*kinds}
    convert = policy.convert

    def read(value: Any, path: str) -> Any:
        if convert is not None:
            value = convert(kinds, value, path)
        kind = type(value)
        right = kind in allowed or value in choices
        if kind is int:
            right = right and -MAX_INTEGER < value < MAX_INTEGER
        elif kind is float:
            right = right and math.isfinite(value)
        if not right:
            raise policy.error(f"{path} is {shown(value)}: expected {' or '.join(words)}")
        return value

    return read


def expect_keys(value: Any, path: str, policy: Policy) -> None:
    """Raise the policy's error unless the value has keys and values."""
    if not isinstance(value, Mapping):
        raise policy.error(f"{path or 'it'} is {shown(value)}: expected keys and values")


def shown(value: Any) -> str:
    """A value in an error message: at most 60 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, a list of too many levels
        return "more than can be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."
