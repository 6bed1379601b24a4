"""A lock on a study's folder against drivers of another ledger."""

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
"""Below a study's folder; it holds the identity of a ledger, and what to call that."""


def hold_folder(home: Path, ledger: str, where: str) -> Callable[[], None]:
    """Keep drivers of other ledgers out of a study's folder, until what is returned is called.

    Their leases know nothing of ours, and both would prune what the other one trains from. Drivers of one `ledger` (its
    identity; `where` is for people) have their lease: who takes over a stopped one finds its lock, and goes on. Raises
    StudyBusy. Where the disk refuses, or its locks are none, nobody is kept out.
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
            other, _, at = file.read(MAX_LOCK_CHARACTERS).partition(" ")
            file.close()
            if other == ledger:
                break
            if at:
                raise StudyBusy(
                    f"in {home} works a driver of another ledger, {at}: wait until it has ended, or give this one a"
                    " folder of its own, output_dir=FOLDER"
                ) from None
        except OSError:
            file.close()
            break
        else:
            if processes.still_named(file, path):
                with contextlib.suppress(OSError):
                    file.truncate(0)
                    file.write(f"{ledger} {where}")
                    file.flush()
                return partial(_let_in, file, path)
            file.close()
        time.sleep(0.01)  # it is being written, or was removed as we opened it
    return lambda: None


def _let_in(file: IO[str], path: Path) -> None:
    with contextlib.suppress(OSError):
        if processes.still_named(file, path):
            path.unlink()
        file.close()
