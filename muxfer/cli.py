"""The command line: options, exit codes, and who owns stdout. What a command does is in `muxfer.commands`.

stdout carries the answer and nothing else: while a command works, file descriptor 1 is stderr (libraries print there
whatever one asks of them). A signal ends a command with 130 or 143, resumable. Heavy libraries are imported late.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any, NoReturn

import click

from muxfer import __version__
from muxfer.errors import MuxferError

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class Interrupted(BaseException):
    """A signal asked the command to stop. Not an Exception: nothing may swallow it."""

    def __init__(self, signum: int) -> None:
        self.exit_code = INTERRUPTED[signal.Signals(signum)]
        super().__init__(f"stopped by {signal.Signals(signum).name}; type the same command again to go on")


def say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more: the work goes on
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _answer_on_stdout() -> Iterator[IO[str]]:
    """The real stdout for the answer; everything else that is printed meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with open(kept, "w", encoding="utf-8", closefd=True) as answer:
        yield answer


def _run(module: str, function: str, *given: Any, as_json: bool = False, **more: Any) -> NoReturn:
    """Run muxfer.MODULE.FUNCTION, print its Answer, and leave with its exit code. Signals stand before imports."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for number in INTERRUPTED:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted(signum)

    for number in INTERRUPTED:
        signal.signal(number, stop)
    with _answer_on_stdout() as stdout:
        try:
            if names := click.get_current_context().meta.get("muxfer.plugins"):
                importlib.import_module("muxfer.plugins").allow(names, folder=os.getcwd())
            answer = getattr(importlib.import_module(f"muxfer.{module}"), function)(*given, **more)
            wall_seconds = {"wall_seconds": round(time.time() - _process_start(), 3)}
            text = json.dumps({**answer.data, **wall_seconds}, indent=2, allow_nan=False) if as_json else answer.text
            code = answer.exit_code
            with contextlib.suppress(BrokenPipeError):
                print(text, file=stdout, flush=True)
        except (MuxferError, Interrupted) as error:
            say(f"muxfer: {error}")
            code = error.exit_code
        except click.Abort:
            say("muxfer: not confirmed; nothing was done")
            code = 2
        except Exception:
            import traceback

            say(f"muxfer {__version__} met a bug of its own; please report it with this traceback")
            say(traceback.format_exc())
            code = 1
    _leave(code)


def _process_start() -> float:
    """When this process began, in seconds of the epoch: imports count as time that a user waits."""
    import psutil

    return float(psutil.Process().create_time())


def _leave(code: int) -> NoReturn:
    """End now: a thread of a library must not keep a finished command alive, nor change its exit code."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.flush()
    os._exit(code)


def _keep_plugins(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    ctx.meta["muxfer.plugins"] = names


PLUGIN = click.option(
    "--plugin",
    multiple=True,
    metavar="MODULE",
    expose_value=False,
    callback=_keep_plugins,
    help="A Python module of your own; model.target may then name its classes.",
)
OVERRIDES = click.argument("overrides", nargs=-1)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")


class OneLineErrors(click.Group):
    """Usage errors in one line, as every other error of ours."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            say(f"muxfer: {error.format_message()}; see muxfer --help")
            sys.exit(2)
        except click.Abort:
            sys.exit(130)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from muxfer.errors import nearest

        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0][:40]!r}: {nearest(args[0][:40], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="muxfer %(version)s")
def main() -> None:
    """Tune a small diffusion transformer under μP, launch the large one with what it found.

    \b
      muxfer sweep lr-width                          learning rate by width, on real images
      muxfer sweep lr-width search.base_lr=[1e-3,2e-3]
      muxfer transfer lr-width target.width=256      launch the target with the settings found
    """


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--dry-run", is_flag=True, help="List each trial: key, state, FLOPs; run nothing.")
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True), help="Stop in order, resumably, after this.")
@click.option("--require-transfer", is_flag=True, help="Exit 6 unless the verdict is `transfers`.")
@click.option("--if-running", type=click.Choice(["fail", "skip"]), default="fail", help="When another driver has it.")
def sweep(
    name: str,
    overrides: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    max_hours: float | None,
    require_transfer: bool,
    if_running: str,
) -> None:
    """Bring study NAME to its finished state: run what the ledger lacks, then judge and report.

    Type it again after anything: finished trials are skipped, half-done ones go on from their checkpoints.

    \b
      muxfer sweep lr-width
      muxfer sweep lr-width optimizer.parametrization=standard search.seeds=3
    """
    if dry_run:
        _run("commands", "dry_run", name, overrides, as_json=as_json)
    _run(
        "commands",
        "sweep",
        name,
        overrides,
        as_json=as_json,
        say=say,
        max_hours=max_hours,
        require_transfer=require_transfer,
        skip_if_running=if_running == "skip",
    )


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--dry-run", is_flag=True, help="Show the choice and the target's plan; launch nothing.")
@click.option("--force", is_flag=True, help="Overrule an objection; the record says so.")
def transfer(name: str, overrides: tuple[str, ...], as_json: bool, dry_run: bool, force: bool) -> None:
    """Choose the best base settings of sweep NAME and launch the target with them.

    \b
      muxfer transfer lr-width
      muxfer transfer lr-width target.width=512 target.steps=4000
    """
    _run("launch", "transfer", name, overrides, as_json=as_json, say=say, dry_run=dry_run, force=force)


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
def verdict(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say whether the optimum of sweep NAME transfers along its axis; exit 6 when it is not a yes.

    \b
      muxfer verdict lr-width
    """
    _run("commands", "verdict", name, overrides, as_json=as_json)


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
def report(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the figures and the page of sweep NAME again, from the ledger.

    \b
      muxfer report lr-width
    """
    _run("commands", "report", name, overrides, as_json=as_json)


@main.command()
@click.argument("run")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--to", type=click.Choice(["diffusers"]), default="diffusers", help="The library that is to load it.")
@click.option("--folder", metavar="DIR", help="Where it goes; else beside the study's trials.")
def export(run: str, overrides: tuple[str, ...], as_json: bool, to: str, folder: str | None) -> None:
    """Write the averaged weights of RUN (a run id of MLflow, a trial's key, or the beginning of one) for others.

    \b
      muxfer export 3f9c --to diffusers
    """
    _run("export", "export", run, overrides, as_json=as_json, to=to, folder=folder)


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--scales", metavar="FILE.json", help="Write the scales, for a trainer of your own.")
def model(name: str, overrides: tuple[str, ...], as_json: bool, scales: str | None) -> None:
    """Show one model: its size, and every parameter's role and scales. NAME is a sweep, or a model of conf/model.

    Where both have that name, the sweep is meant.

    \b
      muxfer model dit +size=xl_2
      muxfer model lr-width model.width=256 --scales scales.json
    """
    _run("describe", "model", name, overrides, as_json=as_json, scales=scales)


@main.command()
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
def check(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check that a model's coordinates stay put as it grows; exit 6 when they don't. NAME is as for `model`.

    \b
      muxfer check lr-width
      muxfer check dit check.sizes=[64,128,256,512]
      muxfer check dit check=depth optimizer.parametrization=completep model.base_depth=4
    """
    _run("check", "check", name, overrides, as_json=as_json, say=say)


@main.command()
@click.argument("name")
@OVERRIDES
def config(name: str, overrides: tuple[str, ...]) -> None:
    """Print the whole configuration of sweep NAME, overrides applied, as YAML.

    \b
      muxfer config lr-width model.depth=6
    """
    _run("commands", "show_config", name, overrides)


@main.command()
@click.argument("name", required=False)
@OVERRIDES
@click.option("--yes", is_flag=True, help="Don't ask.")
def clean(name: str | None, overrides: tuple[str, ...], yes: bool) -> None:
    """Remove checkpoints and reports of sweep NAME (or of all); the ledger is kept. Says what, and asks.

    \b
      muxfer clean lr-width
    """

    def confirmed(question: str) -> bool:
        return yes or click.confirm(question, err=True)

    _run("commands", "clean", name, overrides, confirmed=confirmed)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ui(arguments: tuple[str, ...]) -> None:
    """Open the MLflow dashboard on the ledger of this folder. Takes the options of `mlflow ui`.

    \b
      muxfer ui --port 5000
    """
    from muxfer import commands

    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *commands.ui_arguments(), *arguments])
