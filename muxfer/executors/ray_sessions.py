"""The folder of a private cluster, named after the process that owns it, and the processes that run in it.

Ray keeps sockets, logs and state below one folder. By default all users of a host share it, and nothing there says who
owns a session. muxfer makes a folder of its own before Ray starts. Its name holds the driver's pid, the driver's start
time and the machine. So a later command can remove it once the driver is gone, even after a kill -9 at any moment, and
never touches the session of another process.
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
from muxfer.processes import namespace, start_time

MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
MARK = "MUXFER_RAY"  # the environment variable that holds the cluster's folder in each process of a private cluster
MAX_ROUNDS, ROUND_SECONDS = 40, 0.03
_ending = False


def parent_folder() -> Path:
    """The folder that holds all sessions: RAY_TMPDIR or TMPDIR, or /tmp where a socket's path would be too long."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    socket_path = folder / _own_name() / f"r/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    return folder if len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH_BYTES else Path("/tmp")


def make_folder() -> Path:
    """Make this process's folder, which only this user may enter. Raises NoResources when that fails."""
    folder = parent_folder() / _own_name()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        why = error.strerror
        raise NoResources(f"Ray's folder {folder} can't be made ({why}): give another place, TMPDIR=FOLDER") from None
    if not _is_own_folder(folder):
        raise NoResources(f"Ray's folder {folder} belongs to another user: give another place, TMPDIR=FOLDER")
    return folder


def remove_abandoned() -> None:
    """Remove the folders of this user's processes on this machine that are gone, and end what still runs in them."""
    for folder in parent_folder().glob("muxfer-*"):
        if _owner_lives(folder.name) is False:
            end_session(folder)


def make_storage(home: Path) -> Path:
    """Make a folder for Tune's state on a joined cluster, in the study's folder `home`, named after this process."""
    home.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".ray-{_own_name()}-", dir=home))


def remove_abandoned_storage(home: Path) -> None:
    """Remove the folders that `make_storage` made, except those of living processes on this machine. Only the holder of
    the lease may call this: a driver on another machine has then ended or is fenced. A living process here makes its
    folder before it has the lease.
    """
    for storage in home.glob(".ray-*"):
        if not _owner_lives(storage.name.removeprefix(".ray-").rpartition("-")[0]):
            shutil.rmtree(storage, ignore_errors=True)


def end_own_session() -> None:
    """End Ray's processes of this process, which is about to exit, and let Ray start no more of them."""
    global _ending
    _ending = True
    folder = parent_folder() / _own_name()
    if _is_own_folder(folder):
        end_session(folder)


def is_ending() -> bool:
    return _ending


def end_session(folder: Path) -> None:
    """Kill Ray's processes of a session and remove its folder, until no process and no folder remain."""
    num_clean_rounds = 0
    for _ in range(MAX_ROUNDS):  # a process may start a child meanwhile, and Tune's thread may still write
        pids = list(_processes_with_mark(folder))
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if _is_own_folder(folder):
            shutil.rmtree(folder, ignore_errors=True)
        num_clean_rounds = 0 if pids or _is_own_folder(folder) else num_clean_rounds + 1
        if num_clean_rounds == 2:  # one is not enough: during exec a process has no environment
            return
        time.sleep(ROUND_SECONDS)


def _processes_with_mark(folder: Path) -> Iterator[int]:
    """The pids of this user's living processes that were started for a session. None on a system without /proc. Such a
    process has the session's mark in its environment. The title that Ray gives it may overwrite the mark. So a process
    that writes a file in the folder counts too: each of them writes its log there.
    """
    mark, prefix = os.fsencode(f"{MARK}={folder}"), f"{folder.resolve()}/"
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        with contextlib.suppress(OSError):  # another user's process, or one that has ended
            if pid == os.getpid() or process.stat().st_uid != os.getuid() or start_time(pid) is None:
                continue
            if mark in (process / "environ").read_bytes().split(b"\0") or _writes_below(process, prefix):
                yield pid


def _writes_below(process: Path, prefix: str) -> bool:
    """Whether a process has a file open for writing in a folder. A process that only reads a log there is not Ray's."""
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if file.lstat().st_mode & stat.S_IWUSR and os.readlink(file).startswith(prefix):
                return True
    return False


def _is_own_folder(folder: Path) -> bool:
    """Whether this is a folder, no link, that belongs to this user."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _own_name() -> str:
    return f"muxfer-{os.getpid():x}-{start_time(os.getpid()) or 0:x}-{_machine()}"


def _owner_lives(name: str) -> bool | None:
    """Whether the process lives that `_own_name` named a folder after. None where this machine can't tell."""
    if name == _own_name():
        return True
    owner = re.fullmatch(r"muxfer-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]{6})", name)
    if owner is None or owner[3] != _machine() or owner[2] == "0":
        return None
    return start_time(int(owner[1], 16)) == int(owner[2], 16)


def _machine() -> str:
    """A short hash of this host and its pid namespace."""
    return hashlib.sha256(f"{socket.gethostname()} {namespace()}".encode()).hexdigest()[:6]
