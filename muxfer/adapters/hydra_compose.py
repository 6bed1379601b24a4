"""Compose a study's configuration with Hydra: a file of sweeps/ over the groups of conf/, overrides behind.

The user's own ./sweeps and ./conf stand before the packaged ones. Hydra's compose API is used, never `@hydra.main`
(it does not mix with sub-commands) and never `instantiate` (nothing named in a config is imported). What comes out is
plain data; `muxfer.parse` gives it types. Refused here: a name or an override that climbs out of the folders, a
configuration that Hydra cannot compose.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput, nearest

PACKAGE = Path(__file__).resolve().parents[1]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PRIMARY = "no-sweep"
"""The primary configuration alone, under a name that Hydra finds: it looks for `base` only behind another one."""
MAX_OVERRIDE_CHARACTERS = 10_000
MAX_YAML_BYTES = 1_000_000


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
    if name not in sweep_names() or not NAME.fullmatch(name):
        raise BadInput(f"unknown sweep {name[:64]!r}: {nearest(name[:64], sweep_names())}")
    _check_given(overrides)
    return _compose(name, list(overrides))


def compose_model(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """As `compose`, where NAME may also be a model of conf/model: then the primary configuration with that model.

    A sweep and a model of the same name: the sweep wins, as it does for every other command.
    """
    if name in sweep_names():
        return compose(name, overrides)
    if name not in model_names() or not NAME.fullmatch(name):
        known = (*sweep_names(), *model_names())
        raise BadInput(f"unknown sweep or model {name[:64]!r}: {nearest(name[:64], known)}")
    for override in overrides:
        if override.lstrip("+").startswith("model="):
            raise BadInput(f"override {override[:60]!r}: {name} is the model already; name a sweep, or that model")
    _check_given(overrides)
    return _compose(PRIMARY, [f"model={name}", *overrides])


def to_yaml(config: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(config))).rstrip()


def _compose(name: str, overrides: list[str]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    first, *behind = (*search_path("sweeps"), *search_path("conf"))
    path = ",".join(f'"file://{folder}"' for folder in behind)
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name=PRIMARY, node={"defaults": ["base", "_self_"]})
    try:
        with initialize_config_dir(str(first), version_base="1.3"):
            config = hydra_compose(name, overrides=[*overrides, f"hydra.searchpath=[{path}]"])
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise BadInput(f"{missing[0]} has no value: give it as {missing[0]}=VALUE")
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(_one_line(error, name if overrides else None)) from None
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items()}


def _check_given(overrides: Sequence[str]) -> None:
    """Refuse overrides and folders of the user's that could do more than choose values."""
    for override in overrides:
        _check_override(override)
    for folder in (*search_path("sweeps"), *search_path("conf")):
        _check_folder(folder)
    for own in (search_path("conf")[0], search_path("sweeps")[0]):
        if own != packaged("conf") and (own / "base.yaml").exists():
            raise BadInput(f"{own.name}/base.yaml is muxfer's own primary configuration: supply groups and sweeps only")


def _check_override(override: str) -> None:
    if len(override) > MAX_OVERRIDE_CHARACTERS:
        raise BadInput(f"override {override[:40]}... has {len(override)} characters: expected key=value")
    if not override.isprintable():
        raise BadInput(f"override {override[:60]!r} holds an unprintable character: expected key=value")
    if "=" not in override and not override.startswith("~"):
        raise BadInput(f"override {override[:60]!r}: expected key=value, for example training.steps=100")
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    if key.split(".")[0].split("@")[0] == "hydra":
        raise BadInput(f"override {override[:60]!r}: keys of hydra itself are not part of a study")
    is_group = any((folder / key.partition("@")[0]).is_dir() for folder in search_path("conf"))
    if (is_group or "/" in key or ".." in key) and (".." in value or value.startswith(("/", "\\"))):
        raise BadInput(f"override {override[:60]!r}: a configuration is named inside ./conf, without .. or a leading /")


def _check_folder(folder: Path) -> None:
    """Bound what YAML may do before it is parsed: size, and aliases (a few bytes of them can hang a parser)."""
    for file in folder.rglob("*.yaml"):
        if file.name.startswith(".") or file.is_dir():
            continue
        try:
            size = file.stat().st_size
            text = file.read_text(errors="replace") if size <= MAX_YAML_BYTES else ""
        except OSError as error:
            raise BadInput(f"{file} can't be read ({error.strerror}): mend it or move it away") from None
        if size > MAX_YAML_BYTES:
            raise BadInput(f"{file.name} has {size} bytes: expected at most {MAX_YAML_BYTES}")
        if re.search(r"(^|[\s\[{,:-])\*[A-Za-z0-9_]", "\n".join(_uncommented(text))):
            raise BadInput(f"{file.name} uses YAML aliases (*name): write the values out, or interpolate ${{key}}")


def _uncommented(text: str) -> list[str]:
    return [line.split("#", 1)[0] for line in text.splitlines()]


def _one_line(error: BaseException, sweep: str | None) -> str:
    """The sentence of a Hydra or OmegaConf error that a user can act on; names come with the nearest right one."""
    text = " ".join(str(error).split())
    if key := re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text):
        known = _keys(_compose(sweep, [])) if sweep else []
        return f"unknown key {key.group(1)}: {nearest(key.group(1), known)}"
    if choice := re.search(r"Could not find '([^']+)'", text):
        group, _, wanted = choice.group(1).rpartition("/")
        options = {file.stem for folder in search_path("conf") for file in (folder / group).glob("*.yaml")}
        return f"unknown {group or 'configuration'} {wanted!r}: {nearest(wanted, options)}"
    if "Ambiguous value" in text:
        return f"{text.split(' 1. ')[0]}: to give a list use key=[value1,value2]"
    return text.split(" See https")[0][:300]


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in config.items():
        keys += [f"{prefix}{key}", *(_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [])]
    return keys
