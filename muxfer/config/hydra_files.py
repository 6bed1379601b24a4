"""The files that Hydra may read: inside the configuration folders, plain, small, without YAML aliases.

Hydra joins what a configuration names to its folders and opens it: `../../x` leads out, a FIFO blocks, a few bytes of
aliases hang the parser. Here stand, in place of its own sources, of files and of what lies in its package, two that
look first.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput

MAX_FILE_BYTES = 50_000
MAX_READS = 500
"""How often one composition may look into a file: lists of defaults that name each other twice would double it."""


def quoted(folder: Path) -> str:
    """A folder as an entry of Hydra's search path, inside an override."""
    if "${" in str(folder) or not str(folder).isprintable():
        raise BadInput(f"the folder {str(folder)[:200]!r} can't be named in a configuration: work in another")
    escaped = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return f'"file://{escaped}"'


@contextmanager
def guarded() -> Iterator[None]:
    """While this lasts, Hydra reads files through the sources below."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
    from hydra._internal.sources_registry import SourcesRegistry  # Hydra has no public way to replace a source
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf

    reads = 0

    class Counted(ConfigResult):
        """What was read; Hydra asks it for the defaults at every visit."""

        @property
        def defaults_list(self) -> Any:
            nonlocal reads
            reads += 1
            if reads > MAX_READS:
                raise BadInput(f"the lists of defaults lead to more than {MAX_READS} configurations: name each once")
            return self.__dict__.get("defaults_list")

        @defaults_list.setter
        def defaults_list(self, value: Any) -> None:
            self.__dict__["defaults_list"] = value

    class Guarded(FileConfigSource):
        def load_config(self, config_path: str) -> Any:
            name = self._normalize_file_name(config_path)
            text = _text(Path(self.path) / _inside(name))
            config = OmegaConf.create(text) if text.strip() else OmegaConf.create()
            if OmegaConf.is_dict(config) and "hydra" in config:
                raise BadInput(f"{name} has a key hydra: keys of hydra itself are not part of a study")
            header = self._get_header_dict(text[:512])
            return Counted(config=config, path=f"file://{self.path}", provider=self.provider, header=header)

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

    Plugins.instance()  # fills the registry
    types = SourcesRegistry.instance().types
    kept = dict(types)
    types |= {"file": Guarded, "pkg": GuardedPackage}
    try:
        yield
    finally:
        types |= kept


def _inside(name: str) -> str:
    """The name of a configuration, if it leads nowhere else."""
    climbs = name.startswith("/") or "//" in name or "\\" in name or ".." in name.split("/")
    if climbs or not name.isprintable() or len(name) > 200:
        raise BadInput(f"configuration {name[:60]!r}: one is named inside the folder, without .. or a leading /")
    return name


def _text(file: Path) -> str:
    """A file's text, if it is one that a parser may be given."""
    import yaml

    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{file} is no regular file: expected YAML")
        if about.st_size > MAX_FILE_BYTES:
            raise BadInput(f"{file.name} has {about.st_size} bytes: expected at most {MAX_FILE_BYTES}")
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_BYTES).decode()
    except OSError as error:
        raise BadInput(f"{file} can't be read ({error.strerror}): mend it or move it away") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{file.name} is no UTF-8 text (byte {error.start}): expected YAML") from None
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise BadInput(f"{file.name} uses YAML aliases (*name): write the values out, or interpolate ${{key}}")
    return text
