"""Run one command: stdout for its result alone, signals, and the exit code.

While a command works, file descriptor 1 is stderr, because libraries print to stdout whatever one asks of them. A
signal ends a command with 130 or 143, resumable.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from muxfer import __version__
from muxfer.errors import BadInput, MuxferError, nearest
from muxfer.executors import ray_sessions
from muxfer.redaction import one_line, printable, redact, redact_plain

if TYPE_CHECKING:
    from muxfer.commands.result import CommandResult

_BEGAN = time.monotonic()  # before every heavy import, for which a user waits too; on a clock that nobody sets
INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
STOP_SECONDS = 15.0  # a command that got a signal may take this long to end in order
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
def _result_on_stdout() -> Iterator[IO[str]]:
    """The real stdout for the result. Whatever else is printed meanwhile goes to stderr."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    stdout = os.fdopen(real, "w", encoding="utf-8", errors="backslashreplace")
    try:
        yield stdout
    finally:
        with contextlib.suppress(OSError):  # closing writes again what could not be written; that was reported
            stdout.close()


def run_command(command: Callable[[], "CommandResult"], *, as_json: bool, plugins: Sequence[str]) -> NoReturn:
    """Run a command, print its result on the real stdout, and leave with its exit code. Usage errors are raised on."""
    stop = _Stop()
    with _result_on_stdout() as stdout:
        try:
            stop.handle_signals()
            if plugins:
                from muxfer.models.plugins import allow

                allow(tuple(plugins), folder=os.getcwd())
            result = command()
            code = result.exit_code
            timed = {**result.data, "wall_seconds": round(time.monotonic() - _BEGAN, 3)}
            plain = json.dumps(redact_plain(timed), indent=2, allow_nan=False) if as_json else redact(result.text)
            _ignore_signals()  # a signal can't undo what is done
            _print_result(printable(plain), stdout)
        except click.ClickException:
            raise
        except (Exception, Interrupted) as error:
            code = explain(stop.interrupted or error)  # an error on the way out is of no interest
            if stop.interrupted:  # the command may not have come to what a killed driver left
                ray_sessions.remove_abandoned()
    leave(code)


class _Stop:
    """Turn signals into one `Interrupted`, raised where Python can raise it."""

    def __init__(self) -> None:
        self.interrupted: Interrupted | None = None

    def handle_signals(self) -> None:
        sys.unraisablehook = self._raise_again
        for number in (signal.SIGALRM, *INTERRUPTED):
            signal.signal(number, self._raise)

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self.interrupted is None:
            self.interrupted = Interrupted(signum)
            # A library may wait for ever. Then the process must end as after a kill -9, resumable.
            timer = threading.Timer(STOP_SECONDS, _give_up, [self.interrupted])
            timer.daemon = True
            timer.start()
            ray_sessions.end_own_session()
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            return
        _ignore_signals()
        raise self.interrupted

    def _raise_again(self, lost: "sys.UnraisableHookArgs") -> None:
        """An exception that is raised in a finalizer goes no further: raise ours again a moment later."""
        if not isinstance(lost.exc_value, Interrupted):
            sys.__unraisablehook__(lost)
            return
        signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)


def _print_result(text: str, stdout: IO[str]) -> None:
    try:
        print(text, file=stdout, flush=True)
    except BrokenPipeError:  # nobody reads any more
        pass
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError) -> BadInput:
    why = error.strerror
    return BadInput(f"the answer can't be written to stdout ({why}): make room and type the same command again")


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


AS_JSON, PLUGINS = "muxfer_json", "muxfer_plugins"
"""Options that every command has: kept in click's context, not passed to the command."""


def keep(ctx: click.Context, parameter: click.Parameter, value: bool | tuple[str, ...]) -> None:
    ctx.meta[str(parameter.name)] = value


OVERRIDES = click.argument("overrides", nargs=-1)
KEPT: Any = {"expose_value": False, "callback": keep}
JSON = click.option("--json", AS_JSON, is_flag=True, help="Print one JSON object on stdout and nothing else.", **KEPT)
PLUGIN_HELP = "A Python module of your own; model.target may then name its classes."
PLUGIN = click.option("--plugin", PLUGINS, multiple=True, metavar="MODULE", help=PLUGIN_HELP, **KEPT)

F = TypeVar("F", bound=Callable[..., object])


def study_options(*, required: bool = True) -> Callable[[F], F]:
    """NAME, its overrides, --json and --plugin: what nearly every command takes."""
    return lambda command: click.argument("name", required=required)(OVERRIDES(JSON(PLUGIN(command))))


class Command(click.Command):
    """A command whose function returns a CommandResult. `run_command` runs it."""

    def invoke(self, ctx: click.Context) -> NoReturn:
        as_json, plugins = ctx.meta.get(AS_JSON, False), ctx.meta.get(PLUGINS, ())
        run_command(lambda: super(Command, self).invoke(ctx), as_json=as_json, plugins=plugins)


def _usage_message(error: click.ClickException) -> str:
    if isinstance(error, click.MissingParameter) and error.param is not None and error.param.name == "name":
        from muxfer.config.hydra_compose import sweep_names

        return f"the NAME of a sweep is missing: {', '.join(sweep_names())}"
    return error.format_message().rstrip(".")


class CommandGroup(click.Group):
    """Print usage errors in one line, like every other error. A help text that can't be written is one too."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_streams()
        try:
            return self._parse(*args, **{**kwargs, "standalone_mode": False})
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            leave(explain(unwritten(error)))
        except click.ClickException as error:
            ctx = getattr(error, "ctx", None)
            print_line(f"muxfer: {one_line(_usage_message(error))}; see {ctx.command_path if ctx else 'muxfer'} --help")
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        except Interrupted as error:  # a signal came while the command was ending
            print_line(f"muxfer: {error}")
            leave(error.exit_code)

    def _parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0][:40]!r}: {nearest(args[0][:40], self.commands)}")
        return super().resolve_command(ctx, args)
