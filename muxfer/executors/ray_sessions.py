"""Where a private cluster lives: a folder of its own, whose very name says which process it belongs to.

Ray keeps sockets, logs and state below one folder, by default one that all users of a host share, where nothing tells
whose a session is. Ours is made before Ray starts, and its name holds the driver's pid, when that began, and the
machine: once that process is gone it can be swept, after a kill -9 at any moment, and a session of others never is.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from muxfer.errors import NoResources
from muxfer.processes import start_time

LONGEST_PATH = 107 if sys.platform == "linux" else 103
"""What the path of a socket may take, in bytes."""
MARK = "MUXFER_RAY"
"""The variable in which each process of a private cluster is born with its folder."""
ROUNDS, ROUND_SECONDS = 40, 0.03
_over = False


def parent_folder() -> Path:
    """Where the folders lie: RAY_TMPDIR or TMPDIR, but /tmp where a socket's path would be too long there."""
    request = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    socket_path = request / _name() / f"r/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    return request if len(os.fsencode(socket_path)) <= LONGEST_PATH else Path("/tmp")


def make_folder() -> Path:
    """This process's folder, which only this user may enter."""
    folder = parent_folder() / _name()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise NoResources(
            f"Ray's folder {folder} can't be made ({error.strerror}): give another place, TMPDIR=FOLDER"
        ) from None
    if not _ours(folder):
        raise NoResources(f"Ray's folder {folder} belongs to somebody else: give another place, TMPDIR=FOLDER")
    return folder


def remove_abandoned() -> None:
    """Remove what was left by processes of this user, on this machine, that are gone."""
    for folder in parent_folder().glob("muxfer-*"):
        if _lives(folder.name) is False:
            end_session(folder)


def make_storage(home: Path) -> Path:
    """A folder in a study's own for Tune's state on a joined cluster, named for this process like the others."""
    home.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".ray-{_name()}-", dir=home))


def remove_abandoned_storage(home: Path) -> None:
    """Remove all such folders but those of living processes here: one makes its own before it has the lease.

    For who holds the lease: a driver on another machine has ended, or is fenced.
    """
    for storage in home.glob(".ray-*"):
        if not _lives(storage.name.removeprefix(".ray-").rpartition("-")[0]):
            shutil.rmtree(storage, ignore_errors=True)


def end_own_session() -> None:
    """No process of Ray may be born any more, and those that were are ended: this process is about to leave."""
    global _over
    _over = True
    folder = parent_folder() / _name()
    if _ours(folder):
        end_session(folder)


def is_ending() -> bool:
    """Whether this process is about to leave."""
    return _over


def end_session(folder: Path) -> None:
    """End the processes of Ray that were started for a folder of ours, and remove it; until there are none any more."""
    quiet = 0
    for _ in range(ROUNDS):  # one may have had a child since it was seen, or Tune's thread still write
        found = list(_processes(folder))
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if _ours(folder):
            shutil.rmtree(folder, ignore_errors=True)
        quiet = 0 if found or _ours(folder) else quiet + 1
        if quiet == 2:  # while a process is becoming another program it has no environment
            return
        time.sleep(ROUND_SECONDS)


def _processes(folder: Path) -> Iterator[int]:
    """The living processes of this user that were started for a folder; nothing where there is no /proc.

    All write their logs there. They inherit a mark in their environment too, but the title that Ray gives them may
    overwrite it.
    """
    mark, below = os.fsencode(f"{MARK}={folder}"), f"{folder.resolve()}/"
    for place in Path("/proc").glob("[0-9]*"):
        pid = int(place.name)
        with contextlib.suppress(OSError):  # of others, or gone
            if pid == os.getpid() or place.stat().st_uid != os.getuid() or start_time(pid) is None:
                continue
            if mark in (place / "environ").read_bytes().split(b"\0") or _writes(place, below):
                yield pid


def _writes(place: Path, below: str) -> bool:
    """Whether a process has a file open for writing in a folder; who only reads a log there is somebody else."""
    for file in (place / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if file.lstat().st_mode & stat.S_IWUSR and os.readlink(file).startswith(below):
                return True
    return False


def _ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _name() -> str:
    return f"muxfer-{os.getpid():x}-{start_time(os.getpid()) or 0:x}-{_machine()}"


def _lives(name: str) -> bool | None:
    """Whether the process lives that has this name, see `_name`; None where nobody here can tell."""
    if name == _name():
        return True
    whose = re.fullmatch(r"muxfer-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]{6})", name)
    if whose is None or whose[3] != _machine() or whose[2] == "0":
        return None
    return start_time(int(whose[1], 16)) == int(whose[2], 16)


def _machine() -> str:
    """Stands for this host and container: a pid means something here alone."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:6]
