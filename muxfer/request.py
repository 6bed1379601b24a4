"""A sweep's name and overrides, made definite: the configuration, the data, the study meant, where its files go."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxfer.adapters.hydra_compose import compose
from muxfer.adapters.tracking_uri import default_tracking_uri, masked, sqlite_path
from muxfer.config import Config, ImageFolder
from muxfer.errors import BadInput, MuxferError
from muxfer.ledger import Ledger
from muxfer.models import with_num_classes
from muxfer.parse import parse
from muxfer.plan import study_of
from muxfer.trial import Study

Say = Callable[[str], None]

FAREWELL_SECONDS = 5.0
"""How long a command that was stopped, or failed, waits for the ledger."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sweep's name and overrides, made definite: the study meant, its data, where its files go."""

    name: str
    overrides: tuple[str, ...]
    config: Config
    study: Study
    fingerprint: str
    folder: Path

    @property
    def home(self) -> Path:
        """The study's own folder."""
        return self.folder / self.study.label

    @property
    def overridden(self) -> list[str]:
        """The keys that the overrides name, groups included."""
        return [override.partition("=")[0].lstrip("+~").split("@")[0].replace("/", ".") for override in self.overrides]


def request(name: str, overrides: Sequence[str]) -> Request:
    config = parse(compose(name, overrides))
    if isinstance(config.data, ImageFolder):  # workers have another current folder
        path = str(Path(config.data.path).expanduser().absolute())
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    from muxfer.training.data import load

    data = load(config.data)
    config = dataclasses.replace(config, model=with_num_classes(config.model, data.num_classes))
    return Request(
        name=name,
        overrides=tuple(overrides),
        config=config,
        study=study_of(name, config, fingerprint=data.fingerprint),
        fingerprint=data.fingerprint,
        folder=output_folder(config),
    )


def tracking_uri(config: Config) -> str:
    return config.ledger.tracking_uri or default_tracking_uri()


def output_folder(config: Config) -> Path:
    """`output_dir`, else muxfer/ beside the ledger; muxfer-studies/ where muxfer/ is a Python package."""
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser().absolute()
    database = sqlite_path(tracking_uri(config))
    beside = database.parent if database is not None else Path.cwd()
    return beside / ("muxfer-studies" if (beside / "muxfer" / "__init__.py").exists() else "muxfer")


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"output folder {folder} can't be written ({error.strerror}): give another one, output_dir=FOLDER"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command has to say: `data` under --json, else `text`."""

    data: Mapping[str, Any]
    text: str
    exit_code: int = 0


@contextmanager
def open_ledger(asked: Request, *, existing: bool = False) -> Iterator[Ledger]:
    """The ledger of a request. `existing`: BadInput where there is none yet, instead of making one."""
    uri = tracking_uri(asked.config)
    database = sqlite_path(uri)
    if existing and database is not None and not database.exists():
        raise BadInput(
            f"no ledger at {masked(uri)}: run muxfer sweep {asked.name} first, or give ledger.tracking_uri=URI"
        )
    from muxfer.adapters.mlflow_ledger import MlflowLedger

    ledger = MlflowLedger(asked.config.ledger, folder=asked.folder)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def driving(asked: Request, study: Study, ledger: Ledger, config: Mapping[str, Any] | None) -> Iterator[Any]:
    """Hold the study's lease; whatever ends it, what was written is flushed first and the lease given back."""
    lease = ledger.acquire(study)
    try:
        ledger.open(study, config, lease)
        yield lease
        ledger.flush(asked.config.ledger.patience_seconds)
    except BaseException:  # what went wrong is told, not that the ledger did too: the spool keeps what it did not take
        with contextlib.suppress(MuxferError):
            ledger.flush(FAREWELL_SECONDS)
        raise
    finally:
        lease.release()
