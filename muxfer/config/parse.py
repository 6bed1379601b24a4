"""From plain data to the typed configuration: the one boundary where a user's keys and values are checked.

Refused, each with what was given, what was expected and what to do: an unknown key (with the nearest right one), a
missing key, a wrong type, an unknown name, an empty or impossible grid.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from muxfer.config.settings import SETTINGS, place_of
from muxfer.config.study import Config, Grid, Search, Space
from muxfer.config.task import Task, check
from muxfer.errors import BadInput, nearest

MAX_INTEGER = 2**63
MAX_CHARACTERS = 20_000
_POWER = re.compile(r"2(?:\^|\*\*)([+-]?\d{1,3}(?:\.\d+)?)")


def parse_task(data: Mapping[str, Any]) -> Task:
    task = _parse(Task, data, "")
    assert isinstance(task, Task)
    check(task)
    return task


def parse_part(part: str, data: Mapping[str, Any]) -> Any:
    """One part of a task alone (`model`, `optimizer`), checked by itself. BadInput as below."""
    parsed = _value(typing.get_type_hints(Task)[part], data.get(part), part)
    check(parsed)
    return parsed


def parse(data: Mapping[str, Any]) -> Config:
    """The whole configuration from plain data. BadInput names the first key that cannot work."""
    config = _parse(Config, data, "")
    assert isinstance(config, Config)
    check(config.task)
    check(config)
    return config


def parse_without_grid(data: Mapping[str, Any]) -> Config:
    """As `parse`, for a command that searches nothing: the grid of a study may be missing."""
    config = _parse(Config, data, "")
    assert isinstance(config, Config)
    check(config.task)
    for part in dataclasses.fields(config):
        if part.name != "search" and dataclasses.is_dataclass(value := getattr(config, part.name)):
            check(value)
    return config


def _parse(kind: type, data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise BadInput(f"{path or 'the configuration'} is {_shown(data)}: expected keys and values")
    if kind is Search:
        return _parse_search(data)
    hints = typing.get_type_hints(kind)
    fields = {part.name: part for part in dataclasses.fields(kind)}
    prefix = f"{path}." if path else ""
    for key in data:
        if key not in fields:
            known = nearest(str(key)[:60], (prefix + name for name in fields))
            raise BadInput(f"unknown key {prefix}{str(key)[:60]}: {known}")
    values = {}
    for name, part in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{prefix}{name}")
        elif part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING:
            raise BadInput(f"{prefix}{name} is missing: give it as {prefix}{name}=VALUE")
    return kind(**values)


def _value(hint: Any, value: Any, path: str) -> Any:
    _check_size(value, path)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if type(None) in options:
            return None if value is None else _value(next(o for o in options if o is not type(None)), value, path)
        return _variant(options, value, path)
    if dataclasses.is_dataclass(hint):
        return _parse(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise BadInput(f"{path} is {_shown(value)}: expected {' or '.join(map(str, allowed))}")
        return value
    if hint is float and (type(value) is int or (isinstance(value, str) and _POWER.fullmatch(value))):
        return _number(value, path)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise BadInput(f"{path} is {_shown(value)}: expected a list of {'texts' if kind is str else 'numbers'}")
        return tuple(_value(kind, item, path) for item in value)
    if typing.get_origin(hint) is Mapping:
        return _mapping(typing.get_args(hint)[1], value, path)
    if type(value) is not hint:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        raise BadInput(f"{path} is {_shown(value)}: expected {expected}")
    if hint is float and not math.isfinite(value):
        raise BadInput(f"{path} {value}: expected a finite number")
    return value


def _mapping(hint: Any, value: Any, path: str) -> dict[str, Any]:
    """Names with values: of the types in a union of plain types, or anything (`Any`) that a constructor may take."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{path} is {_shown(value)}: expected keys and values")
    allowed = typing.get_args(hint) or (hint,)
    words = {int: "a whole number", str: "text"}
    for key, item in value.items():
        _check_size(item, f"{path}.{str(key)[:40]}")
        if not isinstance(key, str) or (not key.isidentifier() and hint is not str):
            raise BadInput(f"{path}.{str(key)[:40]}: expected the name of an argument")
        if hint is Any:
            _check_plain(item, f"{path}.{key}")
        elif type(item) not in allowed:
            raise BadInput(f"{path}.{key} is {_shown(item)}: expected {' or '.join(words[kind] for kind in allowed)}")
    return dict(value)


def _check_size(value: Any, path: str) -> None:
    """Refuse numbers and texts that no study has, and on which arithmetic, a database or a terminal would fail."""
    if type(value) is int and not -MAX_INTEGER < value < MAX_INTEGER:
        raise BadInput(f"{path} is a whole number of {value.bit_length()} bits: expected at most 63")
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise BadInput(f"{path} has {len(value)} characters: expected at most {MAX_CHARACTERS}")
        if odd := next((letter for letter in value if not letter.isprintable() and letter not in "\n\t"), None):
            raise BadInput(f"{path} holds the unprintable character {odd!r}: leave it out")


def _check_plain(value: Any, path: str) -> None:
    """Refuse what JSON can't hold: a task is hashed, kept and sent as JSON."""
    _check_size(value, path)
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{path}.{i}")
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _check_plain(item, f"{path}.{key}")
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise BadInput(f"{path} is {_shown(value)}: expected finite numbers, texts, lists, or keys that are texts")


def _variant(options: Sequence[Any], value: Any, path: str) -> Any:
    """The dataclass of a union whose literal `name` (of a model: `family`) is the one given."""
    tag = "family" if "family" in typing.get_type_hints(options[0]) else "name"
    by_name = {typing.get_args(typing.get_type_hints(option)[tag])[0]: option for option in options}
    name = value.get(tag) if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in by_name:
        raise BadInput(f"{path}.{tag} is {_shown(name)}: {nearest(_shown(name), by_name)}")
    return _parse(by_name[name], value, path)


def _parse_search(data: Mapping[str, Any]) -> Search:
    own = {part.name for part in dataclasses.fields(Search)} - {"grids", "spaces"}
    for key in data:
        if key not in own and key not in SETTINGS:
            known = [f"search.{name}" for name in (*own, *SETTINGS)]
            raise BadInput(f"unknown key search.{str(key)[:60]}: {nearest(f'search.{key}'[:60], known)}")
    hints = typing.get_type_hints(Search)
    values = {name: _value(hints[name], data[name], f"search.{name}") for name in own if name in data}
    for name in ("axis", "hp"):
        if name not in values:
            raise BadInput(f"search.{name} is missing: give it as search.{name}=NAME")
    given = {name: data[name] for name in SETTINGS if data.get(name) is not None}
    grids = {name: _grid(name, value) for name, value in given.items() if not isinstance(value, Mapping)}
    spaces: dict[str, Space] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found = _space(name, value)
            if isinstance(found, Space):
                spaces[name] = found
            else:
                grids[name] = found
    return Search(**values, grids=grids, spaces=spaces)


def _grid(name: str, given: Any) -> Grid:
    """The values of one grid, ascending, of the type of the key that they set."""
    path = f"search.{name}"
    entries = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not entries:
        raise BadInput(f"{path} is an empty grid: give at least one value, {path}=[...]")
    values = [setting_value(name, _number(entry, path), entry) for entry in entries]
    if len(set(values)) < len(values):
        raise BadInput(f"{path} holds a value twice: {_shown(list(entries))}; give each once")
    return tuple(sorted(values))


def _space(name: str, given: Mapping[str, Any]) -> Space | Grid:
    """{KIND: [...]}, with log2: true if the numbers are exponents. {grid: [...]} is a grid.

    A Space as plain data, out of the ledger, is read too.
    """
    path = f"search.{name}"
    if set(given) == {"kind", "bounds", "log2"}:
        given = {given["kind"]: given["bounds"], "log2": given["log2"]}
    kinds = typing.get_args(typing.get_type_hints(Space)["kind"])
    kind: Any = next((key for key in given if key != "log2"), "nothing")
    if kind not in (*kinds, "grid") or len(given) > 1 + ("log2" in given):
        raise BadInput(
            f"{path} is {_shown(dict(given))}: expected one of {', '.join(kinds)} or grid, as in "
            f"{path}={{log_uniform:[LOW,HIGH]}}"
        )
    entries = given[kind]
    log2 = _value(bool, given.get("log2", False), f"{path}.log2")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise BadInput(f"{path}.{kind} is {_shown(entries)}: expected a list of numbers")
    bounds = tuple(_number(entry, f"{path}.{kind}") for entry in entries)
    if not all(abs(bound) < (1000 if log2 else math.inf) for bound in bounds):
        raise BadInput(f"{path}.{kind} is {_shown(list(entries))}: expected finite numbers")
    settings = [2.0**bound if log2 else bound for bound in bounds]
    if kind == "grid":
        return _grid(name, settings)
    if kind != "choice" and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise BadInput(f"{path}.{kind} is {_shown(list(entries))}: expected [LOW, HIGH] with LOW below HIGH")
    if kind in ("log_uniform", "log_integer") and bounds[0] <= 0:
        raise BadInput(f"{path}.{kind} is {_shown(list(entries))}: expected ends above 0")
    if kind in ("integer", "log_integer") and not all(bound.is_integer() for bound in bounds):
        raise BadInput(f"{path}.{kind} is {_shown(list(entries))}: expected whole numbers")
    if kind in ("uniform", "log_uniform") and _type_of(name) is int:
        raise BadInput(f"{path} takes whole numbers, {kind} draws others: give {path}={{integer:[LOW,HIGH]}}")
    if kind == "choice" and len(set(bounds)) < len(bounds):
        raise BadInput(f"{path}.choice holds a value twice: {_shown(list(entries))}; give each once")
    for value, entry in zip(settings, entries, strict=True):
        setting_value(name, value, entry)
    return Space(kind=kind, bounds=bounds, log2=log2)


def setting_value(name: str, number: float, entry: Any = None) -> Any:
    """A setting's value, of the type of the key that it sets. BadInput where it can't be; `entry` is what was given."""
    path = f"search.{name}"
    least = "at least 0" if name in ("weight_decay", "warmup_steps", "repa_weight", "label_dropout") else "above 0"
    if not math.isfinite(number) or number < 0 or (number == 0 and least == "above 0"):
        raise BadInput(f"{path} holds {_shown(number if entry is None else entry)}: expected numbers {least}")
    return _value(_type_of(name), number, path)


def _type_of(name: str) -> Any:
    """int or float: the type of the key that a setting sets. A budget is a number."""
    if (place := place_of(name)) is None:
        return float
    kind = typing.get_type_hints(Task)[place[0]]
    hint = typing.get_type_hints((typing.get_args(kind) or (kind,))[0])[place[1]]
    return next(option for option in (*typing.get_args(hint), hint) if option is not type(None))


def _number(entry: Any, path: str) -> float:
    """A number as it stands, or a power of two as text: 2^-7, or 2**-7."""
    _check_size(entry, path)
    if isinstance(entry, str) and (power := _POWER.fullmatch(entry)):
        if abs(float(power.group(1))) > 1000:
            raise BadInput(f"{path} holds {entry}: expected a power of two between 2^-1000 and 2^1000")
        return 2.0 ** float(power.group(1))
    if type(entry) not in (int, float):
        raise BadInput(f"{path} holds {_shown(entry)}: expected numbers, or powers of two such as 2^-7")
    return float(entry)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, a list of too many levels
        return "more than can be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."
