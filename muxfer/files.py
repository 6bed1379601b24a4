"""Safe handling of files and folders that a user or another process may have changed."""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput

FIGURE_SUFFIXES = (".png", ".svg", ".csv")


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, even after a kill. BadInput if the disk refuses: the earlier file stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        why = f"{path} can't be written ({error.strerror or error}): free some space or give another folder"
        raise BadInput(f"{why}, then run the same command again") from error
    return path


def content_of(path: Path, *, follow: bool = True) -> bytes | None:
    """The content of a regular file, else None: a pipe would wait. A link may lead anywhere: only if `follow`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError:
        return None


def user_path(text: str, key: str) -> Path:
    """The absolute path of a file or folder that the user named. BadInput for a name that no file system takes."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{key} {text[:60]!r}: there is no such user; write the folder out") from None
    if not text or not text.isprintable() or len(str(path)) > 2000 or max(map(len, map(os.fsencode, path.parts))) > 200:
        raise BadInput(f"{key} {text[:60]!r}: expected printable names of at most 200 bytes each")
    return path


def validate_writable(folder: Path) -> None:
    """Raise BadInput unless files can be made in the folder. The folder is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = f"output folder {folder} can't be written ({error.strerror})"
        raise BadInput(f"{why}: give another one, output_dir=FOLDER") from None


class _Below:
    """A file or folder at a fixed place below the `path` of its owner."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, kind: type) -> Path:
        return Path(owner.path / self.name)


@dataclass(frozen=True)
class StudyFolder:
    """Where one study keeps its files. `path` is the study's own folder, named by its label."""

    path: Path
    trials = _Below("trials")  # one folder a trial, named by its key
    report = _Below("report.html")
    report_content = _Below("report.of")  # the hash of the records that the report shows

    def trial(self, key: str) -> Path:
        """One folder an attempt, with the attempt's checkpoints."""
        return self.trials / key

    def target(self, key: str) -> "TargetFolder":
        """What the target with this key hands out."""
        return TargetFolder(self.path / f"target-{key[:8]}")

    @property
    def figures(self) -> list[Path]:
        return sorted(file for file in self.path.iterdir() if file.suffix in FIGURE_SUFFIXES)

    @property
    def spools(self) -> list[Path]:
        """Records that the ledger has not taken yet."""
        return sorted(self.path.glob("spool-*.jsonl"))

    @property
    def temporary_files(self) -> list[Path]:
        """Files that a writer replaces whole, half written by one that works or was killed."""
        patterns = (".*.tmp", "target-*/.*.tmp", "spool-*.tmp")
        return [file for pattern in patterns for file in self.path.glob(pattern)]


@dataclass(frozen=True)
class TargetFolder:
    """What a target hands out: averaged weights, their description, pictures, and the run that they come from."""

    path: Path
    weights = _Below("ema.safetensors")
    description = _Below("target.json")  # lineage, task, scales and SHA-256 sums
    samples = _Below("samples.png")
    loss_band = _Below("target-band")  # the figure of the loss in its band, without a suffix
    run_id = _Below("target.of")  # the id of the run that the files come from; written last
