"""Which folders below a study's are ours, by their names. Without torch: every command asks.

A study's folder may come from others. A link may lead anywhere, so nothing is deleted, or looked for, behind one.
"""

import contextlib
import itertools
import os
import re
from pathlib import Path

from muxfer.errors import BadInput

_ATTEMPT = re.compile(r"attempt-[0-9]+-[0-9]+")

MAX_EPOCH = 10**9
"""No lease gets so far: a folder of that epoch and above was made up, to leave nobody a number."""


def refuse_links(*paths: Path) -> None:
    """Raise BadInput where one of the subfolders that we are about to work in is a link."""
    for path in paths:
        if path.is_symlink():
            raise BadInput(
                f"{path} is a link to {os.path.realpath(path)}: expected a folder, for muxfer deletes nothing behind a"
                " link; put the folder itself there, or give another one with output_dir=FOLDER"
            )


def attempts(trial_folder: Path) -> list[Path]:
    return subfolders(trial_folder, _ATTEMPT)


def subfolders(parent: Path, names: re.Pattern[str] | None = None) -> list[Path]:
    """The folders, so named, below `parent`, which may be missing. Links are none, nor is anything behind one."""
    if parent.is_symlink():
        return []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(parent) as entries:
        found = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [path for path in found if names is None or names.fullmatch(path.name)]
    return []


def numbers_in_name(folder: Path) -> tuple[int, ...]:
    """What orders folders by age: the step of a checkpoint, epoch and number of an attempt (as text 10000 < 9999)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", folder.name))


def highest_epoch(home: Path) -> int:
    """The highest lease's epoch that an attempt at a trial bears, of the study whose folder is `home`; 0 without any.

    By the names of folders alone, and behind no link. A lease that claims no higher one, from a ledger that began anew
    or came out of a backup, would be taken for one that was taken over.
    """
    epochs = (numbers_in_name(attempt)[0] for trial in subfolders(home / "trials") for attempt in attempts(trial))
    return max((epoch for epoch in epochs if epoch < MAX_EPOCH), default=0)


def new_attempt(folder: Path, *, epoch: int) -> Path:
    """A folder of this attempt's own below the trial's, the last by number: two that run at once never share one.

    BadInput where the disk refuses, or where the trial's folder, or the study's of all trials, is a link.
    """
    refuse_links(folder.parent, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [numbers_in_name(attempt) for attempt in attempts(folder)]
        last = max((number for its_epoch, number in found if its_epoch == epoch), default=-1)
        for number in itertools.count(last + 1):
            attempt = folder / f"attempt-{epoch:04d}-{number:02d}"
            try:
                attempt.mkdir()
            except FileExistsError:
                continue
            return attempt
    except OSError as error:
        raise BadInput(
            f"trial folder {folder} can't be written ({error.strerror}): free some space or give another folder with"
            " output_dir=FOLDER, then run the same command again"
        ) from None
    raise AssertionError
