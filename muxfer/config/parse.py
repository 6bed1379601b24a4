"""Turn plain data into the typed configuration. A user's keys and values are validated here, and nowhere else.

Refused, each with what was given, what was expected and what to do: an unknown key (with the nearest known one), a
missing key, a wrong type, an unknown name, an empty or impossible grid.
"""

import dataclasses
import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from muxfer.config.settings import SETTINGS, place_of
from muxfer.config.study import Config, Grid, Search, Space
from muxfer.config.task import Task, validate
from muxfer.errors import BadInput, nearest
from muxfer.validate import MAX_INTEGER, Policy, expect_keys, reader_of, shown

MAX_CHARACTERS = 20_000
POWER = re.compile(r"2(?:\^|\*\*)([+-]?\d{1,3}(?:\.\d+)?)")


def parse_task(data: Mapping[str, Any]) -> Task:
    task: Task = _read(Task, data, "")
    validate(task)
    return task


def parse_part(part: str, data: Mapping[str, Any]) -> Any:
    """One part of a task (`model`, `optimizer`), validated by itself. BadInput as below."""
    parsed = _read(typing.get_type_hints(Task)[part], data.get(part), part)
    validate(parsed)
    return parsed


def parse_without_grid(data: Mapping[str, Any]) -> Config:
    """As `parse`, for a command that searches nothing: the grid of a study may be missing."""
    return parse(data, leave_out=("search",))


def parse(data: Mapping[str, Any], *, leave_out: Collection[str] = ()) -> Config:
    """The whole configuration from plain data. BadInput names the first key that cannot work."""
    config: Config = _read(Config, data, "")
    validate(config.task)
    for part in dataclasses.fields(config):
        if part.name not in leave_out and dataclasses.is_dataclass(value := getattr(config, part.name)):
            validate(value)
    return config


def _read(form: Any, value: Any, path: str) -> Any:
    return reader_of(form, STRICT)(value, path)


def _validate_keys(keys: Collection[Any], known: Collection[str], prefix: str) -> None:
    for key in keys:
        if key not in known:
            close = nearest(str(key)[:60], (prefix + name for name in known))
            raise BadInput(f"unknown key {prefix}{str(key)[:60]}: {close}")


def _convert(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """Make a whole number of 8.0, and a number of 8 or of 2^-7, where the annotation has one kind."""
    _validate_size(value, path)
    only = [kind for kind in kinds if kind is not type(None)]
    if only == [float] and (type(value) is int or (isinstance(value, str) and POWER.fullmatch(value))):
        return _number(value, path)
    if only == [float] and type(value) is float and not math.isfinite(value):
        raise BadInput(f"{path} is {value}: expected a finite number")
    if only == [int] and type(value) is float and value.is_integer():
        return int(value)
    return value


def _validate_size(value: Any, path: str) -> None:
    """Refuse numbers and texts that no study has, and on which arithmetic, a database or a terminal would fail."""
    if type(value) is int and not -MAX_INTEGER < value < MAX_INTEGER:
        raise BadInput(f"{path} is a whole number of {value.bit_length()} bits: expected at most 63")
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise BadInput(f"{path} has {len(value)} characters: expected at most {MAX_CHARACTERS}")
        if odd := next((letter for letter in value if not letter.isprintable() and letter not in "\n\t"), None):
            raise BadInput(f"{path} holds the unprintable character {odd!r}: leave it out")


def _read_anything(value: Any, path: str) -> Any:
    """Refuse what JSON cannot hold: a task is hashed, kept and sent as JSON."""
    _validate_size(value, path)
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _read_anything(item, f"{path}.{i}")
    elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            _read_anything(item, f"{path}.{key}")
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise BadInput(f"{path} is {shown(value)}: expected finite numbers, texts, lists, or keys that are texts")
    return value


def _read_search(data: Any, path: str) -> Search:
    """Read the keys of `Search` itself, and each setting as a grid or a space."""
    expect_keys(data, path, STRICT)
    hints = {name: hint for name, hint in typing.get_type_hints(Search).items() if name not in ("grids", "spaces")}
    _validate_keys([f"{path}.{key}" for key in data], [f"{path}.{name}" for name in (*hints, *SETTINGS)], "")
    values = {name: _read(hint, data[name], f"{path}.{name}") for name, hint in hints.items() if name in data}
    for name in ("axis", "hp"):
        if name not in values:
            raise BadInput(f"{path}.{name} is missing: give it as {path}.{name}=NAME")
    settings = {name: _setting(name, data[name]) for name in SETTINGS if data.get(name) is not None}
    spaces = {name: setting for name, setting in settings.items() if isinstance(setting, Space)}
    grids = {name: setting for name, setting in settings.items() if name not in spaces}
    return Search(**values, grids=grids, spaces=spaces)


def _grid(name: str, given: Any) -> Grid:
    """Read the values of one grid. They are ascending, and of the type of the key that they set."""
    path = f"search.{name}"
    entries = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not entries:
        raise BadInput(f"{path} is an empty grid: give at least one value, {path}=[...]")
    values = [setting_value(name, _number(entry, path), entry) for entry in entries]
    if len(set(values)) < len(values):
        raise BadInput(f"{path} holds a value twice: {shown(list(entries))}; give each once")
    return tuple(sorted(values))


def _setting(name: str, given: Any) -> Any:
    """Read the Grid or Space of a setting. A space is {KIND: [...]}, with log2: true if the numbers are exponents. A
    Space as plain data from the ledger is read too. {grid: [...]} is a grid, as is a list.
    """
    path = f"search.{name}"
    if not isinstance(given, Mapping):
        return _grid(name, given)
    if set(given) == {"kind", "bounds", "log2"}:
        given = {given["kind"]: given["bounds"], "log2": given["log2"]}
    kinds = typing.get_args(typing.get_type_hints(Space)["kind"])
    kind: Any = next((key for key in given if key != "log2"), "nothing")
    if kind not in (*kinds, "grid") or len(given) > 1 + ("log2" in given):
        expected = f"one of {', '.join(kinds)} or grid, as in {path}={{log_uniform:[LOW,HIGH]}}"
        raise BadInput(f"{path} is {shown(dict(given))}: expected {expected}")
    entries = given[kind]
    log2 = _read(bool, given.get("log2", False), f"{path}.log2")
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise BadInput(f"{path}.{kind} is {shown(entries)}: expected a list of numbers")
    bounds = tuple(_number(entry, f"{path}.{kind}") for entry in entries)
    if not all(abs(bound) < (1000 if log2 else math.inf) for bound in bounds):
        raise BadInput(f"{path}.{kind} is {shown(list(entries))}: expected finite numbers")
    settings = [2.0**bound if log2 else bound for bound in bounds]
    if kind == "grid":
        return _grid(name, settings)
    if kind != "choice" and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise BadInput(f"{path}.{kind} is {shown(list(entries))}: expected [LOW, HIGH] with LOW below HIGH")
    if kind in ("log_uniform", "log_integer") and bounds[0] <= 0:
        raise BadInput(f"{path}.{kind} is {shown(list(entries))}: expected ends above 0")
    if kind in ("integer", "log_integer") and not all(bound.is_integer() for bound in bounds):
        raise BadInput(f"{path}.{kind} is {shown(list(entries))}: expected whole numbers")
    if kind in ("uniform", "log_uniform") and _type_of(name) is int:
        raise BadInput(f"{path} takes whole numbers, but {kind} draws others: give {path}={{integer:[LOW,HIGH]}}")
    if kind == "choice" and len(set(bounds)) < len(bounds):
        raise BadInput(f"{path}.choice holds a value twice: {shown(list(entries))}; give each once")
    for value, entry in zip(settings, entries, strict=True):
        setting_value(name, value, entry)
    return Space(kind=kind, bounds=bounds, log2=log2)


def setting_value(name: str, number: float, entry: Any = None) -> Any:
    """Read a setting's value as the type of the key that it sets. `entry` is what was given, for the error."""
    path = f"search.{name}"
    least = "at least 0" if name in ("weight_decay", "warmup_steps", "repa_weight", "label_dropout") else "above 0"
    if not math.isfinite(number) or number < 0 or (number == 0 and least == "above 0"):
        raise BadInput(f"{path} holds {shown(number if entry is None else entry)}: expected numbers {least}")
    return _read(_type_of(name), number, path)


def _type_of(name: str) -> Any:
    """The type of the key that a setting sets: int or float. A budget is a number."""
    if (place := place_of(name)) is None:
        return float
    kind = typing.get_type_hints(Task)[place[0]]
    hint = typing.get_type_hints((typing.get_args(kind) or (kind,))[0])[place[1]]
    return next(option for option in (*typing.get_args(hint), hint) if option is not type(None))


def _number(entry: Any, path: str) -> float:
    """Read a number, or a power of two as text: 2^-7, or 2**-7."""
    _validate_size(entry, path)
    if isinstance(entry, str) and (power := POWER.fullmatch(entry)):
        if abs(float(power.group(1))) > 1000:
            raise BadInput(f"{path} holds {entry}: expected a power of two between 2^-1000 and 2^1000")
        return 2.0 ** float(power.group(1))
    if type(entry) not in (int, float):
        raise BadInput(f"{path} holds {shown(entry)}: expected numbers, or powers of two such as 2^-7")
    return float(entry)


STRICT = Policy(
    error=BadInput,
    remedy=": give it as {}=VALUE",
    build=lambda form, values: form(**values),
    validate_keys=_validate_keys,
    convert=_convert,
    readers={Any: _read_anything, Search: _read_search},
)
