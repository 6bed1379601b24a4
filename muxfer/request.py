"""A sweep's name and overrides, made definite: the configuration, the data, the study meant, where its files go."""

import contextlib
import dataclasses
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muxfer.adapters import ray_sessions
from muxfer.adapters.hydra_compose import composed
from muxfer.adapters.tracking_uri import default_tracking_uri, masked, sqlite_path
from muxfer.config import Config
from muxfer.environment import hidden
from muxfer.errors import BadInput, MuxferError, StudyBusy
from muxfer.lease import HeldLease
from muxfer.ledger import Ledger
from muxfer.models import with_num_classes
from muxfer.parse import parse
from muxfer.plan import study_of
from muxfer.processes import gone
from muxfer.task import ImageFolder
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
    variables: Mapping[str, str] = field(default_factory=dict)
    """By dotted path the texts of what the environment gives: what is recorded in place of the values."""

    @property
    def description(self) -> str:
        """What the study says of itself, as it may be shown."""
        return str(hidden({"description": self.config.description}, self.variables)["description"])

    @property
    def home(self) -> Path:
        """The study's own folder."""
        return self.folder / self.study.label

    @property
    def overridden(self) -> list[str]:
        """The keys that the overrides name, groups included."""
        return [override.partition("=")[0].lstrip("+~").split("@")[0].replace("/", ".") for override in self.overrides]


def request(name: str, overrides: Sequence[str], *, planned: bool = False) -> Request:
    """`planned`: data that are only described will do, for nothing is to be trained. Otherwise BadInput says so."""
    found = composed(name, overrides)
    config = parse(found.plain)
    if isinstance(config.data, ImageFolder):  # workers have another current folder
        path = str(user_path(config.data.path, "data.path"))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
    from muxfer.training.data import about, load

    if not planned:
        load(config.data)
    data = about(config.data)
    config = dataclasses.replace(config, model=with_num_classes(config.model, data.num_classes))
    return Request(
        name=name,
        overrides=tuple(overrides),
        config=config,
        study=study_of(name, config, fingerprint=data.fingerprint),
        fingerprint=data.fingerprint,
        folder=output_folder(config),
        variables=found.variables,
    )


def looking(name: str, overrides: Sequence[str] = ()) -> Request:
    """The ledger, folder and cluster that are meant, without data and so without a study: to look, not to run."""
    config = parse(composed(name, overrides).plain)
    nobody = Study(name=name, key="", identity={})
    return Request(
        name=name,
        overrides=tuple(overrides),
        config=config,
        study=nobody,
        fingerprint="",
        folder=output_folder(config),
    )


def tracking_uri(config: Config) -> str:
    return config.ledger.tracking_uri or default_tracking_uri()


def output_folder(config: Config) -> Path:
    """`output_dir`, else muxfer/ beside the ledger; muxfer-studies/ where muxfer/ is a Python package."""
    if config.output_dir is not None:
        return user_path(config.output_dir, "output_dir")
    database = sqlite_path(tracking_uri(config))
    beside = database.parent if database is not None else Path.cwd()
    return beside / ("muxfer-studies" if (beside / "muxfer" / "__init__.py").exists() else "muxfer")


def user_path(text: str, key: str) -> Path:
    """An absolute path of a file or folder that the user named; BadInput where no file system has such names."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{key} {text[:60]!r}: there is no such user; write the folder out") from None
    if not text or not text.isprintable() or len(str(path)) > 2000 or max(map(_bytes, path.parts)) > 200:
        raise BadInput(f"{key} {text[:60]!r}: expected printable names of at most 200 bytes each")
    return path


def words_of(text: str, option: str) -> list[str]:
    """A sweep's name and overrides, as one would type them, out of one option."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"{option} {text[:60]!r}: {error}; expected the name of a sweep and its overrides") from None
    if not words:
        raise BadInput(f"{option} is empty: expected the name of a sweep and its overrides")
    return words


def _bytes(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))


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

    ledger = MlflowLedger(asked.config.ledger, folder=asked.folder, variables=asked.variables)
    try:
        yield ledger
    finally:
        ledger.close()


def _sweep_litter(home: Path) -> None:
    """Files that drivers which were killed left half written beside a study's own; who holds the lease may.

    Folders are exports', which hold no lease: the next one tidies them up.
    """
    for left in (*home.glob(".*.tmp"), *home.glob("target-*/.*.tmp"), *home.glob("spool-*.tmp")):
        writer = re.search(r"\.(\d+)\.tmp$", left.name)
        if writer is None or gone(int(writer[1])):  # `report` writes without a lease
            with contextlib.suppress(OSError):
                left.unlink()
    ray_sessions.sweep_storage(home)


@contextmanager
def driving(asked: Request, study: Study, ledger: Ledger, config: Mapping[str, Any] | None) -> Iterator[Any]:
    """Hold the study's lease; whatever ends it, what was written is flushed first and the lease given back."""
    lease = ledger.acquire(study)
    try:
        ledger.open(study, config, lease)
        _sweep_litter(asked.folder / study.label)
        yield lease
        ledger.flush(asked.config.ledger.patience_seconds)
    except BaseException as error:  # it is told, not that the ledger failed too: the spool keeps what it did not take
        with contextlib.suppress(MuxferError):
            ledger.flush(FAREWELL_SECONDS, brief=True)
        if isinstance(error, MuxferError) and isinstance(lease, HeldLease) and lease.overtaken():
            told = f"another driver took study {study.label} over; this one stops and writes no more"
            raise StudyBusy(told) from error  # we were stopped for long, and whatever waited for us gave up
        raise
    finally:
        lease.release()
