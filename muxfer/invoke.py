"""Run one command: stdout for its result, signals, and the exit code."""

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any, NoReturn

import click

from muxfer import __version__
from muxfer.errors import BadInput, MuxferError
from muxfer.executors import ray_sessions
from muxfer.redaction import one_line, printable, redact, redact_plain

_BEGAN = time.monotonic()
"""Before every heavy import, for which a user waits too; on a clock that nobody sets."""
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
STOP_SECONDS = 15.0
"""How long a command that was told to stop may take to end in order."""
AGAIN_SECONDS = 0.05
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Interrupted(BaseException):
    """A signal asked the command to stop. Not an Exception: nothing may swallow it."""

    def __init__(self, signum: int) -> None:
        self.exit_code = INTERRUPTED[signal.Signals(signum)]
        super().__init__(f"stopped by {signal.Signals(signum).name}; type the same command again to go on")


def print_line(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more, or its disk is full: the work goes on
        print(printable(redact(line)), file=sys.stderr, flush=True)


def open_streams() -> None:
    """What the caller closed leads nowhere: else the next file that is opened has its number, and is written into."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


@contextlib.contextmanager
def _answer_on_stdout() -> Iterator[IO[str]]:
    """The real stdout for the answer; everything else that is printed meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    answer = os.fdopen(kept, "w", encoding="utf-8", errors="backslashreplace")
    try:
        yield answer
    finally:
        with contextlib.suppress(OSError):  # what could not be written is tried again, and was told of
            answer.close()


def run_command(module: str, function: str, *given: Any, as_json: bool = False, **more: Any) -> NoReturn:
    """Run a function of muxfer.commands, print its Answer, and leave with its exit code."""

    told: list[Interrupted] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if not told:
            told.append(Interrupted(signum))
            # A library may wait for ever: then what a kill -9 leaves must do.
            late = threading.Timer(STOP_SECONDS, _give_up, [told[0]])
            late.daemon = True
            late.start()
            ray_sessions.end_own_session()
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            return
        _ignore_signals()
        raise told[0]

    def swallowed(lost: sys.UnraisableHookArgs) -> None:
        """What is raised in a finalizer goes no further."""
        if not isinstance(lost.exc_value, Interrupted):
            sys.__unraisablehook__(lost)
            return
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    with _answer_on_stdout() as stdout:
        try:
            sys.unraisablehook = swallowed
            for number in (signal.SIGALRM, *INTERRUPTED):
                signal.signal(number, stop)
            if names := click.get_current_context().meta.get("muxfer.plugins"):
                importlib.import_module("muxfer.models.plugins").allow(names, folder=os.getcwd())
            answer = getattr(importlib.import_module(f"muxfer.commands.{module}"), function)(*given, **more)
            wall_seconds = {"wall_seconds": round(time.monotonic() - _BEGAN, 3)}
            text = redact(answer.text)
            if as_json:
                text = json.dumps(redact_plain({**answer.data, **wall_seconds}), indent=2, allow_nan=False)
            code = answer.exit_code
            _ignore_signals()  # what is answered is done
            _tell(printable(text), stdout)
        except (Exception, Interrupted) as error:
            code = explain(told[0] if told else error)  # what broke on the way out is of no interest
            if told:  # maybe before it came to what a killed driver left
                ray_sessions.remove_abandoned()
    leave(code)


def _tell(text: str, stdout: IO[str]) -> None:
    try:
        print(text, file=stdout, flush=True)
    except BrokenPipeError:  # nobody reads any more
        pass
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError) -> BadInput:
    told = f"the answer can't be written to stdout ({error.strerror}): make room and type the same command again"
    return BadInput(told)


def explain(error: BaseException) -> int:
    """Say why a command ended; its exit code."""
    match error:
        case MuxferError() | Interrupted():
            print_line(f"muxfer: {one_line(str(error))}")
            return error.exit_code
        case click.Abort():
            print_line("muxfer: not confirmed; nothing was done")
            return 2
        case _:
            import traceback

            print_line(f"muxfer {__version__} met a bug of its own; please report it with this traceback")
            print_line("".join(traceback.format_exception(error)))
            return 1


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: its C++ may abort where we raise, and the lock of imports swallows it."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _ignore_signals() -> None:
    for number in (signal.SIGALRM, *INTERRUPTED):
        signal.signal(number, signal.SIG_IGN)


def _give_up(error: Interrupted) -> NoReturn:
    print_line(f"muxfer: {error} (it did not end in order within {STOP_SECONDS:g} s)")
    leave(error.exit_code)


def leave(code: int) -> NoReturn:
    """End now: a thread of a library must not keep a finished command alive, nor change its exit code."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    ray_sessions.end_own_session()
    os._exit(code)
