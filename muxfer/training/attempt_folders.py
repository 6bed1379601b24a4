"""Find and make the folders of attempts in a study's folder, by their names alone.

    study folder / trials / trial key / attempt-EPOCH-NN / checkpoints

This module loads no torch, because every command uses it. A study's folder may come from somebody else, and a link in
it may lead anywhere. So nothing behind a link is read or deleted.
"""

import contextlib
import itertools
import os
import re
from pathlib import Path

from muxfer.errors import BadInput

_ATTEMPT = re.compile(r"attempt-[0-9]+-[0-9]+")

MAX_EPOCH = 10**9
"""No lease reaches this epoch. A folder with this epoch or a higher one is a forgery and is ignored: it would leave no
higher epoch for the next lease."""


def refuse_links(*paths: Path) -> None:
    """Raise BadInput where one of the folders to work in is a link."""
    for path in paths:
        if path.is_symlink():
            raise BadInput(
                f"{path} is a link to {os.path.realpath(path)}: expected a folder, for muxfer deletes nothing behind a"
                " link; put the folder itself there, or give another one with output_dir=FOLDER"
            )


def attempts(trial_folder: Path) -> list[Path]:
    """The folders of a trial's attempts, in no order."""
    return subfolders(trial_folder, _ATTEMPT)


def subfolders(parent: Path, names: re.Pattern[str] | None = None) -> list[Path]:
    """The folders in `parent`, without links, whose names match `names`. Empty where `parent` is missing or a link."""
    if parent.is_symlink():
        return []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(parent) as entries:
        paths = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [path for path in paths if names is None or names.fullmatch(path.name)]
    return []


def stored_bytes(trial_folder: str | Path) -> int:
    """The bytes that a trial's checkpoints take on the disk, unfinished ones too."""
    total = 0
    if os.path.islink(trial_folder):
        return total
    for root, _, names in os.walk(trial_folder):
        for name in names:
            with contextlib.suppress(OSError):  # a worker may just have pruned it
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def numbers_in_name(folder: Path) -> tuple[int, ...]:
    """A checkpoint's step, or an attempt's epoch and number. They order folders by age (as text 10000 < 9999)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", folder.name))


def highest_epoch(home: Path) -> int:
    """The highest lease epoch in the names of the attempts of the study whose folder is `home`. 0 without attempts. A
    ledger that is new, or was restored from a backup, may count lower. A lease with no higher epoch than this one would
    look like a lease that another driver has taken over.
    """
    epochs = (numbers_in_name(attempt)[0] for trial in subfolders(home / "trials") for attempt in attempts(trial))
    return max((epoch for epoch in epochs if epoch < MAX_EPOCH), default=0)


def new_attempt(folder: Path, *, epoch: int) -> Path:
    """Make the folder of a new attempt in the trial's folder. It has the next number: no two attempts share a folder.
    Raises BadInput when the disk refuses, or when the trial's folder or the one above it is a link.
    """
    refuse_links(folder.parent, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = [numbers_in_name(attempt) for attempt in attempts(folder)]
        last = max((number for its_epoch, number in earlier if its_epoch == epoch), default=-1)
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
