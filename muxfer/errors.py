"""Every way in which muxfer refuses, as one tree. Each error has the exit code of the command that it ends.

    MuxferError                  (never raised itself)
    ├── BadInput            2    a config, a name, a table or a model that cannot work
    ├── TrialsFailed        3    some trials failed, or the cluster died while they ran
    ├── LedgerUnreachable   4    MLflow does not respond; nothing that was trained is lost
    ├── NoResources         5    the study needs more than any node has
    ├── NotConfirmed        6    a verdict or a check that does not confirm (only its exit code is used)
    └── StudyBusy          75    another driver holds this study

A message says what was given, what was expected and what to do, in one line. Any other exception is a bug in muxfer: it
ends with exit code 1 and its traceback.
"""

import difflib
from collections.abc import Iterable


class MuxferError(Exception):
    exit_code = 1


class BadInput(MuxferError):
    exit_code = 2


class TrialsFailed(MuxferError):
    exit_code = 3


class LedgerUnreachable(MuxferError):
    exit_code = 4


class NoResources(MuxferError):
    exit_code = 5


class NotConfirmed(MuxferError):
    exit_code = 6


class StudyBusy(MuxferError):
    exit_code = 75


def nearest(given: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message that refuses a name: the nearest known name, or `otherwise`, or all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if otherwise is not None:
        return otherwise
    return f"known: {', '.join(names)}" if names else "none is known"
