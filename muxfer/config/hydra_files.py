"""Let Hydra read only plain, small files inside the configuration folders, without YAML aliases.

Hydra joins the names in a configuration to its folders and opens the result. `../../x` leads out of the folders, a
FIFO blocks, and a few bytes of aliases hang the parser. So the two sources here replace Hydra's own, for files and for
its package, and validate first. This module imports Hydra; only `hydra_compose` imports it, and late.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry  # Hydra has no public way to replace a source
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from muxfer.errors import BadInput

MAX_FILE_BYTES = 50_000
MAX_READS = 500
"""How many lists of defaults one composition may read: lists that name each other twice would double it each time."""


def quoted(folder: Path) -> str:
    """A folder as an entry of Hydra's search path, inside an override."""
    if "${" in str(folder) or not str(folder).isprintable():
        raise BadInput(f"the folder {str(folder)[:200]!r} cannot be named in a configuration: work in another")
    escaped = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return f'"file://{escaped}"'


@contextmanager
def guarded() -> Iterator[None]:
    """Make Hydra read files through the sources below while this lasts."""
    Plugins.instance()  # fills the registry
    types = SourcesRegistry.instance().types
    originals = dict(types)
    types |= {"file": GuardedFiles, "pkg": GuardedPackage}
    CountedResult.reads = 0
    try:
        yield
    finally:
        types |= originals


class CountedResult(ConfigResult):
    """One file's configuration. Hydra reads its list of defaults at every visit."""

    reads: ClassVar[int] = 0

    @property
    def defaults_list(self) -> Any:
        CountedResult.reads += 1
        if CountedResult.reads > MAX_READS:
            raise BadInput(f"the lists of defaults lead to more than {MAX_READS} configurations: name each once")
        return self.__dict__.get("defaults_list")

    @defaults_list.setter
    def defaults_list(self, value: Any) -> None:
        self.__dict__["defaults_list"] = value


class GuardedFiles(FileConfigSource):
    def load_config(self, config_path: str) -> Any:
        name = self._normalize_file_name(config_path)
        text = _text(Path(self.path) / _inside(name))
        config = OmegaConf.create(text) if text.strip() else OmegaConf.create()
        if OmegaConf.is_dict(config) and "hydra" in config:
            raise BadInput(f"{name} has a key hydra: keys of hydra itself are not part of a study")
        header = self._get_header_dict(text[:512])
        return CountedResult(config=config, path=f"file://{self.path}", provider=self.provider, header=header)

    def is_group(self, config_path: str) -> bool:
        return bool(super().is_group(_inside(config_path)))

    def is_config(self, config_path: str) -> bool:
        name = _inside(self._normalize_file_name(config_path))
        return (Path(self.path) / name).exists() and not self.is_group(name)


class GuardedPackage(ImportlibResourcesConfigSource):
    def load_config(self, config_path: str) -> Any:
        return super().load_config(_inside(config_path))

    def is_group(self, config_path: str) -> bool:
        return bool(super().is_group(_inside(config_path)))

    def is_config(self, config_path: str) -> bool:
        return bool(super().is_config(_inside(config_path)))


def _inside(name: str) -> str:
    """The name of a configuration. BadInput if it leads out of its folder."""
    climbs = name.startswith("/") or "//" in name or "\\" in name or ".." in name.split("/")
    if climbs or not name.isprintable() or len(name) > 200:
        raise BadInput(f"configuration {name[:60]!r}: a name stays inside the folder, without .. or a leading /")
    return name


def _text(file: Path) -> str:
    """The text of a file. BadInput unless it is a small regular file of UTF-8 YAML without aliases."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{file} is no regular file: expected YAML")
        if about.st_size > MAX_FILE_BYTES:
            raise BadInput(f"{file.name} has {about.st_size} bytes: expected at most {MAX_FILE_BYTES}")
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_BYTES).decode()
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): repair it or move it away") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file.name} is no UTF-8 text (byte {error.start}): expected YAML") from None
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise BadInput(f"{file.name} uses YAML aliases (*name): write the values out, or interpolate ${{key}}")
    return text
