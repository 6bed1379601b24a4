"""The command line: options, exit codes, and who owns stdout. What a command does is in `muxfer.commands`.

stdout carries the answer and nothing else: while a command works, file descriptor 1 is stderr (libraries print there
whatever one asks of them). A signal ends a command with 130 or 143, resumable. Heavy libraries are imported late.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from muxfer import __version__
from muxfer.invoke import UNWRITABLE, Interrupted, explain, leave, open_streams, print_line, run_command, unwritten
from muxfer.redaction import one_line


def _keep_plugins(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    ctx.meta["muxfer.plugins"] = names


def _complaint(error: click.ClickException) -> str:
    if isinstance(error, click.MissingParameter) and error.param is not None and error.param.name == "name":
        from muxfer.config.hydra_compose import sweep_names

        return f"the NAME of a sweep is missing: {', '.join(sweep_names())}"
    return error.format_message().rstrip(".")


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
    """Usage errors in one line, as every other error of ours; and a help that can't be written is one."""

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
            print_line(f"muxfer: {one_line(_complaint(error))}; see {ctx.command_path if ctx else 'muxfer'} --help")
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        except Interrupted as error:  # told to stop while it was ending
            print_line(f"muxfer: {error}")
            leave(error.exit_code)

    def _parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)

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


@main.command(short_help="Run what study NAME lacks, judge it, report")
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
        run_command("dry_run", "dry_run", name, overrides, as_json=as_json)
    run_command(
        "sweep",
        "sweep",
        name,
        overrides,
        as_json=as_json,
        print_line=print_line,
        max_hours=max_hours,
        require_transfer=require_transfer,
        skip_if_running=if_running == "skip",
    )


@main.command(short_help="Launch the target with the best settings of sweep NAME")
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--dry-run", is_flag=True, help="Show the choice and the target's plan; launch nothing.")
@click.option("--force", is_flag=True, help="Overrule an objection; the record says so.")
@click.option("--flops", type=click.FloatRange(min=0, min_open=True), help="Size the target by a fit, at this budget.")
@click.option("--law", metavar="NAME", help="With --flops: the isoFLOP study that is fitted; NAME itself if left out.")
def transfer(
    name: str,
    overrides: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    force: bool,
    flops: float | None,
    law: str | None,
) -> None:
    """Choose the best base settings of sweep NAME and launch the target with them.

    \b
      muxfer transfer lr-width
      muxfer transfer lr-width target.width=512 target.steps=4000
      muxfer transfer lr-width --flops 1e15 --law isoflop
    """
    if law is not None and flops is None:
        raise click.UsageError(f"--law {law} sizes the target at a budget: give --flops as well")
    sizing = {"flops": flops, "law": law}
    run_command(
        "transfer",
        "transfer",
        name,
        overrides,
        as_json=as_json,
        print_line=print_line,
        dry_run=dry_run,
        force=force,
        **sizing,
    )


@main.command(short_help="What sweep NAME costs before anything runs")
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--budget", type=float, metavar="SHARE", help="Propose proxies below this share of the target's FLOPs.")
def plan(name: str, overrides: tuple[str, ...], as_json: bool, budget: float | None) -> None:
    """Count what sweep NAME costs before anything runs: trials, FLOPs, share of the target, hours where measured.

    \b
      muxfer plan lr-width
      muxfer plan mmdit-random scale=paper
      muxfer plan lr-width scale=paper --budget 0.03
    """
    run_command("plan", "plan", name, overrides, as_json=as_json, budget=budget)


@main.command(short_help="Does the optimum transfer? Of sweep NAME, or of a table")
@click.argument("name", required=False)
@OVERRIDES
@JSON
@PLUGIN
@click.option("--table", metavar="FILE.csv", help="Judge a table of runs, one a row, instead of a sweep.")
@click.option("--axis", metavar="COL", help="With --table: the column of the size (width, batch, steps).")
@click.option("--hp", metavar="COL", help="With --table: the column of the setting.")
@click.option("--metric", metavar="COL", help="With --table: the column of the result; empty where a run diverged.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="With --table: the better metric; min if left out.")
@click.option("--log2-hp", is_flag=True, help="With --table: take log2 of the setting; not where it is log2 already.")
@click.option("--seed", metavar="COL", help="With --table: the column that numbers runs of shared randomness.")
def verdict(
    name: str | None, overrides: tuple[str, ...], as_json: bool, table: str | None, log2_hp: bool, **columns: str | None
) -> None:
    """Say whether the optimum of sweep NAME, or of a table, transfers along its axis; exit 6 when it is not a yes.

    \b
      muxfer verdict lr-width
      muxfer verdict --table runs.csv --axis width --hp lr --metric loss --log2-hp
    """
    given = {key: value for key, value in columns.items() if value is not None}
    if table is None:
        if given or log2_hp:
            raise click.UsageError(f"--{min(given, default='log2-hp')} goes with --table FILE.csv alone")
        if name is None:
            raise click.UsageError("verdict needs the NAME of a sweep, or --table FILE.csv")
        run_command("verdict", "verdict", name, overrides, as_json=as_json)
    if name is not None:
        raise click.UsageError(f"--table {table} and the sweep {name!r} exclude each other: give one")
    if missing := [f"--{key} COL" for key in ("axis", "hp", "metric") if key not in given]:
        raise click.UsageError(f"--table needs {', '.join(missing)} as well: the columns to read")
    run_command("verdict_table", "verdict", table, as_json=as_json, log2_hp=log2_hp, **given)


@main.command(short_help="Scaling laws of isoFLOP sweep NAME, or of a table")
@click.argument("name", required=False)
@OVERRIDES
@JSON
@PLUGIN
@click.option("--table", metavar="FILE.csv", help="Fit a table: flops, params, loss, and tokens or fid if it has them.")
@click.option("--predict", "predict_at", type=click.FloatRange(min=0, min_open=True), metavar="FLOPS", help="A budget.")
@click.option("--against", metavar="NAME", help="Another isoFLOP sweep, its overrides in the same quotes.")
@click.option("--against-table", metavar="FILE.csv", help="Another table.")
@click.option("--figure", metavar="FILE.png", help="Where the figure goes; else beside the study's report.")
def fit(name: str | None, overrides: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Fit scaling laws to isoFLOP sweep NAME, or to a table; exit 6 when too few budgets have an optimum.

    \b
      muxfer fit isoflop --predict 1e15
      muxfer fit --table runs.csv --predict 1.5e21 --figure laws.png
      muxfer fit isoflop --against "isoflop model=cross_attention"
    """
    if (name is None) == (options["table"] is None):
        raise click.UsageError("fit needs the NAME of an isoFLOP sweep, or --table FILE.csv, and not both")
    if options["against"] is not None and options["against_table"] is not None:
        raise click.UsageError("--against NAME and --against-table FILE.csv exclude each other: give one")
    run_command("fit", "fit", name, overrides, as_json=as_json, **options)


@main.command(short_help="Figures and page of sweep NAME again, from the ledger")
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
def report(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Write the figures and the page of sweep NAME again, from the ledger.

    \b
      muxfer report lr-width
    """
    run_command("report", "report", name, overrides, as_json=as_json)


@main.command(short_help="How sweep NAME stands, or every study of the ledger")
@click.argument("name", required=False)
@OVERRIDES
@JSON
@PLUGIN
@click.option("--watch", is_flag=True, help="Say it again whenever it changes, until nobody drives it.")
def status(name: str | None, overrides: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """Show how sweep NAME stands: its driver, its trials, what runs; without NAME, the studies of the ledger.

    \b
      muxfer status lr-width --watch
    """
    run_command("status", "status", name, overrides, as_json=as_json, print_line=print_line, watch=watch)


@main.command(short_help="Run the failed trials of sweep NAME again")
@click.argument("name")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--failed", is_flag=True, required=True, help="The trials that failed: the others are settled.")
def retry(name: str, overrides: tuple[str, ...], as_json: bool, failed: bool) -> None:
    """Run the failed trials of sweep NAME again, from their checkpoints, and nothing else.

    \b
      muxfer retry lr-width --failed
    """
    run_command("retry", "retry", name, overrides, as_json=as_json, print_line=print_line)


@main.command(short_help="Write the weights of RUN for another library")
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
    run_command("export", "export", run, overrides, as_json=as_json, to=to, folder=folder)


@main.command(short_help="One model: its size, each parameter's role and scales")
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
    run_command("model", "model", name, overrides, as_json=as_json, scales=scales)


@main.command(short_help="Do a model's coordinates stay put as it grows?")
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
    run_command("check", "check", name, overrides, as_json=as_json, print_line=print_line)


@main.command(short_help="The whole configuration of sweep NAME, as YAML")
@click.argument("name")
@OVERRIDES
def config(name: str, overrides: tuple[str, ...]) -> None:
    """Print the whole configuration of sweep NAME, overrides applied, as YAML.

    \b
      muxfer config lr-width model.depth=6
    """
    run_command("config", "show_config", name, overrides)


@main.command(short_help="Remove checkpoints and reports; the ledger is kept")
@click.argument("name", required=False)
@OVERRIDES
@click.option("--yes", is_flag=True, help="Don't ask.")
def clean(name: str | None, overrides: tuple[str, ...], yes: bool) -> None:
    """Remove checkpoints and reports of sweep NAME (or of all); the ledger is kept. Says what, and asks.

    \b
      muxfer clean lr-width
    """

    def confirmed(question: str) -> bool:
        try:
            return yes or click.confirm(question, err=True)
        except (click.Abort, Interrupted):
            print_line("")  # nobody typed the end of that line
            raise

    run_command("clean", "clean", name, overrides, confirmed=confirmed)


@main.command(short_help="Is everything here that a sweep needs?")
@OVERRIDES
@JSON
def doctor(overrides: tuple[str, ...], as_json: bool) -> None:
    """Try everything that a sweep needs here: versions, memory, disks, devices, Ray, the ledger; say how to mend it.

    Exit 6 when something here would fail; a warning is none.

    \b
      muxfer doctor
      muxfer doctor ledger.tracking_uri=http://mlflow.lab:5000 compute.address=10.0.0.1:6379
    """
    run_command("doctor", "doctor", "lr-width", overrides, as_json=as_json)


@main.command(
    context_settings={"ignore_unknown_options": True},
    short_help="Open the MLflow dashboard on the ledger of this folder",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ui(arguments: tuple[str, ...]) -> None:
    """Open the MLflow dashboard on the ledger of this folder. Takes the options of `mlflow ui`.

    \b
      muxfer ui --port 5000
    """
    from muxfer.commands.ui import ui_environment

    environment = {**os.environ, **ui_environment(), "PYTHONSAFEPATH": "1"}  # no ./mlflow.py of the folder's
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments], environment)
