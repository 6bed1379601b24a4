"""A lock on a study's folder that keeps drivers of other ledgers out."""

import contextlib
import fcntl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

from muxfer import processes
from muxfer.errors import StudyBusy
from muxfer.ledger.lease import RACE_SECONDS

FOLDER_LOCK, MAX_LOCK_CHARACTERS = ".driver.lock", 4000
"""The lock's name in a study's folder, and how much of it is read: the identity of a ledger and its name."""


def hold_folder(home: Path, ledger: str, where: str) -> Callable[[], None]:
    """Lock a study's folder against drivers of other ledgers. The function that is returned unlocks it.

    The lease does not keep such drivers out, because it lies in one ledger. Two of them would prune the checkpoints
    that the other one trains from. `ledger` is the identity of the ledger, `where` its name for people.

    Drivers of the same ledger have the lease. A driver that takes over a stopped one finds its lock, and goes on
    without one. Raises StudyBusy. If the disk refuses the lock file, or has no working locks, nobody is kept out.
    """
    path = home / FOLDER_LOCK
    for _ in range(round(RACE_SECONDS / 0.01)):
        try:
            home.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError:
            break
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other, _, other_where = file.read(MAX_LOCK_CHARACTERS).partition(" ")
            file.close()
            if other == ledger:
                break
            if other_where:
                busy = f"{home} is in use by a driver of another ledger, {other_where}: wait until it has ended"
                raise StudyBusy(f"{busy}, or give this one a folder of its own, output_dir=FOLDER") from None
        except OSError:
            file.close()
            break
        else:
            if processes.still_named(file, path):
                with contextlib.suppress(OSError):
                    file.truncate(0)
                    file.write(f"{ledger} {where}")
                    file.flush()
                return partial(_unlock, file, path)
            file.close()
        time.sleep(0.01)  # its holder is writing it, or removed it after we had opened it
    return lambda: None


def _unlock(file: IO[str], path: Path) -> None:
    with contextlib.suppress(OSError):
        if processes.still_named(file, path):
            path.unlink()
        file.close()
