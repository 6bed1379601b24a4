"""Compose a study's configuration with Hydra: a file of sweeps/ over the groups of conf/, and then the overrides.

The user's own ./sweeps and ./conf come before the packaged ones. Hydra's compose API is used. `@hydra.main` is not,
because it does not mix with sub-commands. `instantiate` is not, because nothing named in a config may be imported. The
result is plain data, and `config.parse` gives it types. A name or an override that leads out of the folders is refused
here, as is a configuration that Hydra cannot compose. `hydra_files` restricts the files, `hydra_values` what ${...} may
hold.
"""

import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxfer.config.settings import SETTINGS
from muxfer.config.study import Search
from muxfer.errors import BadInput, MuxferError, nearest
from muxfer.redaction import remember_variables

PACKAGE = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PRIMARY = "no-sweep"
"""The primary configuration alone. It needs this name, because Hydra searches for `base` only from another one."""
SEARCHED = re.compile(r"search\.(?P<name>[a-z0-9_]+)=.*")
POWER = re.compile(r"((?:^|[\[,:(]) *)(2\^[+-]?[\d.]+)(?= *(?:[\]},)]|$))")
SEARCH_KEYS = frozenset((*SETTINGS, *(key.name for key in dataclasses.fields(Search))))
MAX_OVERRIDES = 200
MAX_OVERRIDE_CHARACTERS = 2_000
MAX_NESTED = 50


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A configuration as plain data, and by dotted path the ${...} text of each value that the environment gives."""

    plain: Mapping[str, Any]
    variables: Mapping[str, str]


def packaged(folder: str) -> Path:
    """`conf` or `sweeps` as shipped: inside the wheel, or at the top of a checkout."""
    inside = PACKAGE / "_packaged" / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def search_path(folder: str) -> list[Path]:
    """The folders of that name, the user's own first."""
    own = Path.cwd() / folder
    shipped = packaged(folder)
    return [own, shipped] if own.is_dir() and own.resolve() != shipped.resolve() else [shipped]


def sweep_names() -> list[str]:
    return sorted({file.stem for folder in search_path("sweeps") for file in folder.glob("*.yaml")})


def model_names() -> list[str]:
    return sorted({file.stem for folder in search_path("conf") for file in (folder / "model").glob("*.yaml")})


def compose(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of sweep NAME as plain data. BadInput in one line when it cannot be composed."""
    return dict(composed(name, overrides).plain)


def composed(name: str, overrides: Sequence[str] = ()) -> Composed:
    """As `compose`, with the values that came from the environment."""
    if name not in sweep_names() or not NAME.fullmatch(name):
        raise BadInput(f"unknown sweep {name[:64]!r}: {nearest(name[:64], sweep_names())}")
    _validate_given(overrides)
    return _compose(name, list(overrides))


def compose_model(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose`, but NAME may also be a model, which the primary configuration takes. A sweep of that name wins."""
    if name in sweep_names():
        return compose(name, overrides)
    if name not in model_names() or not NAME.fullmatch(name):
        given, known = name[:64], (*sweep_names(), *model_names())
        raise BadInput(f"unknown sweep or model {given!r}: {nearest(given, known)}")
    for override in overrides:
        if override.lstrip("+").startswith("model="):
            raise BadInput(f"override {override[:60]!r}: {name} is the model already; name a sweep, or that model")
    _validate_given(overrides)
    return dict(_compose(PRIMARY, [f"model={name}", *overrides]).plain)


def to_yaml(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config))).rstrip()


def _compose(name: str, overrides: list[str]) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from muxfer.config import hydra_files, hydra_values

    folders = [*search_path("sweeps"), *search_path("conf")]
    # Hydra looks for the primary configuration in the first folder alone.
    first = next((folder for folder in folders if (folder / f"{name}.yaml").is_file()), folders[0])
    path = ",".join(hydra_files.quoted(folder) for folder in folders if folder != first)
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name=PRIMARY, node={"defaults": ["base", "_self_"]})
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # Hydra's advice on lists of defaults
            hydra_files.guarded(),
            initialize_config_dir(str(first), version_base="1.3"),
        ):
            others, searched = _separate_search([_quoted(override) for override in overrides])
            config = hydra_compose(name, overrides=[*others, f"hydra.searchpath=[{path}]"])
            for key, value in searched.items():
                OmegaConf.update(config, key, value, merge=False, force_add=True)
        hydra_values.validate(OmegaConf.to_container(config, resolve=False))
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise BadInput(f"{missing[0]} has no value: give it as {missing[0]}=VALUE")
        plain, variables = hydra_values.resolve(config)
    except MuxferError:
        raise
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds for a wrong input
        raise BadInput(_one_line(error, name if overrides else None)) from None
    remember_variables(variables)
    return Composed(plain=plain, variables=variables)


def _quoted(override: str) -> str:
    """Quote what Hydra's grammar lacks: ~/pictures, which no shell expands inside KEY=VALUE, and 2^-7."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, equals, value = override.partition("=")
    if value.startswith("~"):
        value = QuotedString(text=value, quote=Quote.double).with_quotes()
    elif not set(value) & set("'\"\\$"):
        value = POWER.sub(r'\1"\2"', value)
    return f"{key}{equals}{value}"


def _separate_search(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split overrides into those for Hydra, and the values of those that name a known key of `search`. Hydra would
    merge a list with a space, or two spaces, and fail. A searched setting also needs no + when the sweep's file lacks
    it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    others, searched = [], {}
    for override in overrides:
        match = SEARCHED.fullmatch(override)
        if match and match["name"] in SEARCH_KEYS and "${" not in override:
            (parsed,) = OverridesParser.create().parse_overrides([override])
            if not parsed.is_sweep_override():
                searched[f"search.{match['name']}"] = parsed.value()
                continue
        others.append(override)
    return others, searched


def _validate_given(overrides: Sequence[str]) -> None:
    """Refuse overrides that could do more than choose values, and a primary configuration of the user's own."""
    if len(overrides) > MAX_OVERRIDES:
        raise BadInput(f"{len(overrides)} overrides: expected at most {MAX_OVERRIDES}; write a sweep of your own")
    for override in overrides:
        _validate_override(override)
    for own in (search_path("conf")[0], search_path("sweeps")[0]):
        if own != packaged("conf") and (own / "base.yaml").exists():
            raise BadInput(f"{own.name}/base.yaml is muxfer's own primary configuration: supply groups and sweeps only")


def _validate_override(override: str) -> None:
    if len(override) > MAX_OVERRIDE_CHARACTERS:
        raise BadInput(f"override {override[:40]}... has {len(override)} characters: expected key=value")
    if not override.isprintable():
        raise BadInput(f"override {override[:60]!r} holds an unprintable character: expected key=value")
    if "=" not in override and not override.startswith("~"):
        raise BadInput(f"override {override[:60]!r}: expected key=value, for example training.steps=100")
    depths = itertools.accumulate(((letter in "[{(") - (letter in ")}]") for letter in override), initial=0)
    if max(override.count(bracket) for bracket in "[{(") > MAX_NESTED and max(depths) > MAX_NESTED:
        raise BadInput(f"override {override[:40]}... is nested more than {MAX_NESTED} deep: expected key=value")
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    if key.split(".")[0].split("@")[0] == "hydra":
        raise BadInput(f"override {override[:60]!r}: keys of hydra itself are not part of a study")
    is_group = any(os.path.isdir(folder / key.partition("@")[0]) for folder in search_path("conf"))
    if (is_group or "/" in key or ".." in key) and (".." in value or value.startswith(("/", "\\"))):
        raise BadInput(f"override {override[:60]!r}: a configuration is named inside ./conf, without .. or a leading /")


def _one_line(error: BaseException, sweep: str | None) -> str:
    """Turn an error of Hydra or OmegaConf into one sentence with a remedy, and the nearest known name."""
    from hydra.errors import OverrideParseException

    if isinstance(error, OverrideParseException):
        return _grammar_error(error.override, error.message)
    text = " ".join(str(error).split())[:2000]
    if variable := re.search(r"Environment variable '([^']+)' not found", text):
        where = re.search(r"full_key: (\S+)", text)
        reader = f"{where[1]} reads " if where else ""
        return f"{reader}the environment variable {variable[1]}, which is not set: set it, or give another value"
    if missing := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"${{{missing[1]}}} is no key of the configuration: name one, or write the value itself"
    unknown = re.search(r"not in struct full_key: (\S+)", text)
    if key := unknown or re.search(r"Could not override '([^']+)'", text):
        config = _compose(sweep, []).plain if sweep else {}
        groups = f"known: {', '.join(sorted(config))}; muxfer config NAME prints every key"
        return f"unknown key {key.group(1)}: {nearest(key.group(1), _keys(config), groups)}"
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, wanted = choice.group(1).rpartition("/")
        options = {file.stem for folder in search_path("conf") for file in (folder / group).glob("*.yaml")}
        return f"unknown {group or 'configuration'} {wanted!r}: {nearest(wanted, options)}"
    if "Ambiguous value" in text:
        return f"{text.split(' 1. ')[0]}: to give a list use key=[value1,value2]"
    return f"the configuration cannot be composed: {text.split(' See https')[0][:300] or type(error).__name__}"


def _grammar_error(override: str, message: str) -> str:
    """The reason why Hydra's parser refuses an override: an error of a function in it, or the grammar."""
    if message.startswith("Error parsing override"):
        reason = " ".join(message.partition("\n")[2].partition("\nSee https")[0].split())[:300]
        return f"override {override[:60]!r}: {reason}"
    balanced = all(override.count(opened) == override.count(closed) for opened, closed in ("[]", "{}", "()"))
    remedy = (
        "write a text that holds signs or brackets as 'key=\"text\"'"
        if balanced
        else "close each bracket that is opened"
    )
    return f"override {override[:60]!r} does not follow Hydra's grammar: {remedy}"


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys += [f"{prefix}{key}", *(_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [])]
    return keys
