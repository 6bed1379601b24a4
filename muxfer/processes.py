"""Processes of this machine: whether one lives, when it began, and which one has locked a file.

It reads /proc itself and does not use psutil. `psutil.create_time` adds the boot time of the wall clock, so a step of
the clock changes it. A start time in clock ticks since boot never changes, and a lease must not depend on a wall clock.
psutil also does not say who holds a lock on a file. On a system without /proc, the functions that read it return None.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO


def status(pid: int) -> tuple[str, int, int] | None:
    """(state letter, parent's pid, start time in clock ticks since boot). None if the process is gone or hidden."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = text.rpartition(b")")[2].split()
    return after_name[0].decode(), int(after_name[1]), int(after_name[19])


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot. None if it is gone, hidden or a zombie."""
    now = status(pid)
    return None if now is None or now[0] in "ZX" else now[2]


def gone(pid: int) -> bool:
    """Whether the process surely does not exist. /proc may hide processes of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it exists, and is another user's
        pass
    return False


def namespace() -> str:
    """The pid namespace of this process: a pid is only valid within one. Empty on a system without /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def still_named(file: IO[str], path: Path) -> bool:
    """Whether an open file still has that name. While we waited for its lock, it may have been removed."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def locking_process(files: Iterable[Path]) -> int | None:
    """The pid of a process that has locked a part of one of these files for writing, by fcntl. None if unknown."""
    inodes = set()
    for file in files:
        with suppress(OSError):
            inodes.add(file.stat().st_ino)
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for _, kind, _, access, pid, where, *_ in map(str.split, lines):
        if kind == "POSIX" and access == "WRITE" and int(where.rpartition(":")[2]) in inodes:
            return int(pid)
    return None
