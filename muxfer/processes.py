"""What the system tells of a process of this machine: whether it lives, when it began, what it has locked.

Nothing without /proc.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO


def status(pid: int) -> tuple[str, int, int] | None:
    """(state letter, parent's pid, start time in clock ticks since boot); None if it is gone or hidden from us."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    after_name = text.rpartition(b")")[2].split()
    return after_name[0].decode(), int(after_name[1]), int(after_name[19])


def start_time(pid: int) -> int | None:
    """When a process began; None if it is gone or hidden, or only waits to be buried."""
    found = status(pid)
    return None if found is None or found[0] in "ZX" else found[2]


def gone(pid: int) -> bool:
    """Whether there surely is no such process: /proc may hide those of other users (hidepid)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's
        pass
    return False


def still_named(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name: who waited for a lock may get that of a removed one."""
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def locker(files: Iterable[Path]) -> int | None:
    """Who has a part of one of these files locked for writing, by fcntl; None if nobody we are shown."""
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
