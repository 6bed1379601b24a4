"""Resolve ${...} in a configuration. It may name another key or an environment variable, and nothing else.

OmegaConf expands every reference. Thirty lines that each name the next one twice would never end, so the expanded
values are counted first. OmegaConf's other resolvers are of no use to a study, and are refused. A value from the
environment is marked, so that it can be recorded by its variable's name.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from muxfer.errors import BadInput

MAX_VALUES = 10_000
REFERENCE = re.compile(r"\$\{\s*([\w.@/\[\]-]+)\s*\}")
OPENED = re.compile(r"\$\{")
ALLOWED = re.compile(r"\$\{\s*(oc\.env\s*:|oc\.decode\s*:\s*\$\{\s*oc\.env\s*:|[\w.@/\[\]-]+\s*\})")
NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
DEFAULT = re.compile(r"""[^{}$,'"]*""")
FIRST, LAST = "\ue000", "\ue001"
MARK = re.compile(f"{FIRST}(\\d+){LAST}")
RECORDED = ("search", "check", "target", "published")
"""Groups whose values are written into records and verdicts. They must not come from a variable."""


def resolve(config: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A validated configuration as plain data, and by dotted path the text of each value from the environment."""
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=False)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, Mapping)
    variables: dict[str, str] = {}
    if any("oc.env" in text for _, text in _texts(raw, ())):
        marks: list[str] = []
        with _marking(marks):
            marked = OmegaConf.to_container(config, resolve=True)
        _compare(plain, marked, marks, "", variables)
    return {str(key): value for key, value in plain.items()}, variables


def validate(raw: Any) -> None:
    """Refuse references of other kinds, circular ones, and those that expand to too much. Nothing is resolved yet."""
    for path, text in _texts(raw, ()):
        for opening in OPENED.finditer(text):
            if not ALLOWED.match(text, opening.start()):
                raise BadInput(
                    f"{'.'.join(map(str, path))} is {text[:60]!r}: expected ${{key}}, ${{oc.env:NAME}} or"
                    " ${oc.decode:${oc.env:NAME}}"
                )
    sizes: dict[tuple[Any, ...], int] = {}

    def size(path: tuple[Any, ...], value: Any) -> int:
        """Count the values that this one expands to. A long text counts as several."""
        if path in sizes:
            if sizes[path] < 0:
                raise BadInput(f"{'.'.join(map(str, path))} refers to itself: write the value itself")
            return sizes[path]
        sizes[path] = -1
        count = 1
        if isinstance(value, Mapping):
            count += sum(size((*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            count += sum(size((*path, i), item) for i, item in enumerate(value))
        elif isinstance(value, str):
            count += len(value) // 64
            for name in REFERENCE.findall(value):
                target = _target(name, path)
                if (referred := _at(raw, target)) is not None:
                    count += size(target, referred)
        if count > MAX_VALUES:
            raise BadInput(f"{'.'.join(map(str, path))} expands to more than {MAX_VALUES} values: write fewer ${{...}}")
        sizes[path] = count
        return count

    size((), raw)


def _target(name: str, path: tuple[Any, ...]) -> tuple[str, ...]:
    """The path that a reference names: from the top, or relative to the reference if it starts with dots."""
    relative = name.lstrip(".")
    up = len(name) - len(relative)
    base = tuple(map(str, path[: max(0, len(path) - up)])) if up else ()
    return (*base, *(part for part in re.split(r"[.\[\]]+", relative) if part))


def _at(raw: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and part.isdigit() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return None
    return raw


def _texts(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _texts(item, (*path, i))
    elif isinstance(value, str):
        yield path, value


@contextmanager
def _marking(marks: list[str]) -> Iterator[None]:
    """Make the environment return marks while this lasts. Each mark stands for its text in `marks`."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def mark(text: str) -> str:
        marks.append(text)
        return f"{FIRST}{len(marks) - 1}{LAST}"

    def env(*given: Any) -> str:
        name, *default = given
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInput(f"${{oc.env:{str(name)[:40]}}}: expected the name of an environment variable")
        if not default:
            return mark(f"${{oc.env:{name}}}")
        text = "null" if default[0] is None else str(default[0])
        if not DEFAULT.fullmatch(text) or len(default) > 1 or MARK.search(text):
            raise BadInput(f"${{oc.env:{name},...}}: expected a default without quotes, commas, braces or $")
        return mark(f"${{oc.env:{name},{text}}}")

    def decode(expr: Any, _parent_: Any, _node_: Any) -> Any:
        if isinstance(expr, str) and MARK.search(expr):
            return mark(f"${{oc.decode:{_without_marks(expr, marks)}}}")
        return oc.decode(expr, _parent_=_parent_, _node_=_node_)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    OmegaConf.register_new_resolver("oc.decode", decode, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.register_new_resolver("oc.decode", oc.decode, replace=True)


def _without_marks(text: str, marks: list[str]) -> str:
    return MARK.sub(lambda mark: marks[int(mark[1])], text)


def _compare(value: Any, marked: Any, marks: list[str], path: str, variables: dict[str, str]) -> None:
    """Collect the texts of marked values. Refuse a value that depends on the environment in any other way."""
    if isinstance(marked, str) and MARK.search(marked):
        if path.split(".")[0] in RECORDED:
            recorded = "what is searched or checked is recorded"
            raise BadInput(f"{path} reads an environment variable: {recorded}, write the value itself")
        text = _without_marks(marked, marks)
        if isinstance(value, Mapping | list) or (text.startswith("${oc.decode:") and not marked.endswith(LAST)):
            raise BadInput(f"{path} is {text[:60]}: expected a single value from the environment")
        variables[path] = text
    elif isinstance(value, Mapping) and isinstance(marked, Mapping) and value.keys() == marked.keys():
        for key, item in value.items():
            _compare(item, marked[key], marks, f"{path}.{key}" if path else str(key), variables)
    elif isinstance(value, list) and isinstance(marked, list) and len(value) == len(marked):
        for i, (item, other) in enumerate(zip(value, marked, strict=True)):
            _compare(item, other, marks, f"{path}.{i}" if path else str(i), variables)
    elif type(value) is not type(marked) or (value != marked and value == value):
        raise BadInput(f"{path} depends on the environment in a way that cannot be recorded: give ${{oc.env:NAME}}")
