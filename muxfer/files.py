"""Files and folders that a user or another process may have touched: named, read and replaced with care."""

import os
import stat
import tempfile
from pathlib import Path

from muxfer.errors import BadInput


def replace_file(path: Path, content: bytes) -> Path:
    """Write whole or not at all: a reader, or a killed driver, never sees half a page.

    BadInput where the disk refuses; what was there before stays.
    """
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
        raise BadInput(
            f"{path} can't be written ({error.strerror or error}): free some space or give another folder, then run"
            " the same command again"
        ) from error
    return path


def content_of(path: Path, *, follow: bool = True) -> bytes | None:
    """What a file holds; None where none can be read: nothing is there, a folder, a pipe, or a link not to `follow`.

    A pipe would be waited for, and a link may lead out of the study.
    """
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
    """An absolute path of a file or folder that the user named; BadInput where no file system has such names."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise BadInput(f"{key} {text[:60]!r}: there is no such user; write the folder out") from None
    if not text or not text.isprintable() or len(str(path)) > 2000 or max(map(_bytes, path.parts)) > 200:
        raise BadInput(f"{key} {text[:60]!r}: expected printable names of at most 200 bytes each")
    return path


def _bytes(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))


def validate_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"output folder {folder} can't be written ({error.strerror}): give another one, output_dir=FOLDER"
        ) from None
