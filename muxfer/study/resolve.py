"""From a sweep's name and overrides to the configuration, the data, the study, and the folder of its files."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from muxfer.config.hydra_compose import composed
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.config.study import Config
from muxfer.config.task import ImageFolder
from muxfer.errors import BadInput
from muxfer.files import StudyFolder, user_path
from muxfer.ledger.tracking_uri import default_tracking_uri, sqlite_path
from muxfer.redaction import with_variable_names
from muxfer.study.trials import study_of
from muxfer.trial import Study

PrintLine = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command line means: the configuration, the study, its data, and the folder of all studies."""

    name: str
    overrides: tuple[str, ...]
    config: Config
    study: Study
    fingerprint: str
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """By dotted path, the texts that name environment variables. They are recorded in place of the values."""

    @property
    def description(self) -> str:
        """The study's description, with names of variables in place of their values."""
        return str(with_variable_names({"description": self.config.description}, self.variables)["description"])

    @property
    def files(self) -> StudyFolder:
        return self.files_of(self.study)

    def files_of(self, study: Study) -> StudyFolder:
        return StudyFolder(self.folder / study.label)

    @property
    def overridden(self) -> list[str]:
        """The keys that the overrides name, groups included."""
        return [override.partition("=")[0].lstrip("+~").split("@")[0].replace("/", ".") for override in self.overrides]


def resolve(name: str, overrides: Sequence[str], *, planned: bool = False) -> Request:
    """Resolve a command line. `planned`: nothing will be trained, so data that are only described are accepted."""
    composition = composed(name, overrides)
    config = parse(composition.plain)
    if isinstance(config.data, ImageFolder):  # workers have another current folder
        path = str(user_path(config.data.path, "data.path"))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    from muxfer.data.source import describe_data, load_dataset

    if not planned:
        load_dataset(config.data)
    data = describe_data(config.data)
    config = dataclasses.replace(config, model=with_num_classes(config.model, data.num_classes))
    return Request(
        name=name,
        overrides=tuple(overrides),
        config=config,
        study=study_of(name, config, fingerprint=data.fingerprint),
        fingerprint=data.fingerprint,
        folder=output_folder(config),
        variables=composition.variables,
    )


def resolve_without_data(name: str, overrides: Sequence[str] = ()) -> Request:
    """Resolve ledger, folder and cluster alone: without data there is no study, and nothing can run."""
    config = parse(composed(name, overrides).plain)
    none, folder = Study(name=name, key="", identity={}), output_folder(config)
    return Request(name=name, overrides=tuple(overrides), config=config, study=none, fingerprint="", folder=folder)


def tracking_uri(config: Config) -> str:
    return config.ledger.tracking_uri or default_tracking_uri()


def output_folder(config: Config) -> Path:
    """`output_dir`, or muxfer/ beside the ledger; muxfer-studies/ where muxfer/ is a Python package."""
    if config.output_dir is not None:
        return user_path(config.output_dir, "output_dir")
    database = sqlite_path(tracking_uri(config))
    beside = database.parent if database is not None else Path.cwd()
    return beside / ("muxfer-studies" if (beside / "muxfer" / "__init__.py").exists() else "muxfer")


def words_of(text: str, option: str) -> list[str]:
    """Split the text of one option into a sweep's name and its overrides."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"{option} {text[:60]!r}: {error}; expected the name of a sweep and its overrides") from None
    if not words:
        raise BadInput(f"{option} is empty: expected the name of a sweep and its overrides")
    return words
