"""The command line: options and help. `muxfer.commands` has the functions, `muxfer.invoke` owns stdout and signals."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from muxfer import __version__
from muxfer.invoke import JSON, OVERRIDES, PLUGIN, CommandGroup, Interrupted, print_line, study_options

if TYPE_CHECKING:
    from muxfer.commands.result import CommandResult


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="muxfer %(version)s")
def main() -> None:
    """Tune a small diffusion transformer under μP, launch the large one with what it found.

    \b
      muxfer sweep lr-width                          learning rate by width, on real images
      muxfer sweep lr-width search.base_lr=[1e-3,2e-3]
      muxfer transfer lr-width target.width=256      launch the target with the settings found
    """


@main.command(short_help="Run what study NAME lacks, judge it, report")
@study_options()
@click.option("--dry-run", is_flag=True, help="List each trial: key, state, FLOPs; run nothing.")
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True), help="Stop in order, resumably, after this.")
@click.option("--require-transfer", is_flag=True, help="Exit 6 unless the verdict is `transfers`.")
@click.option("--if-running", type=click.Choice(["fail", "skip"]), default="fail", help="When another driver has it.")
def sweep(
    name: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    max_hours: float | None,
    require_transfer: bool,
    if_running: str,
) -> CommandResult:
    """Bring study NAME to its finished state: run what the ledger lacks, then judge and report.

    Type it again after anything: finished trials are skipped, half-done ones go on from their checkpoints.

    \b
      muxfer sweep lr-width
      muxfer sweep lr-width optimizer.parametrization=standard search.seeds=3
    """
    if dry_run:
        from muxfer.commands.dry_run import dry_run as list_trials

        return list_trials(name, overrides)
    from muxfer.commands.sweep import sweep as run

    return run(
        name,
        overrides,
        print_line=print_line,
        max_hours=max_hours,
        require_transfer=require_transfer,
        skip_if_running=if_running == "skip",
    )


@main.command(short_help="Launch the target with the best settings of sweep NAME")
@study_options()
@click.option("--dry-run", is_flag=True, help="Show the choice and the target's plan; launch nothing.")
@click.option("--force", is_flag=True, help="Overrule an objection; the record says so.")
@click.option("--flops", type=click.FloatRange(min=0, min_open=True), help="Size the target by a fit, at this budget.")
@click.option("--law", metavar="NAME", help="With --flops: the isoFLOP study that is fitted; NAME itself if left out.")
def transfer(
    name: str, overrides: tuple[str, ...], dry_run: bool, force: bool, flops: float | None, law: str | None
) -> CommandResult:
    """Choose the best base settings of sweep NAME and launch the target with them.

    \b
      muxfer transfer lr-width
      muxfer transfer lr-width target.width=512 target.steps=4000
      muxfer transfer lr-width --flops 1e15 --law isoflop
    """
    if law is not None and flops is None:
        raise click.UsageError(f"--law {law} sizes the target at a budget: give --flops as well")
    from muxfer.commands.transfer import transfer as run

    return run(name, overrides, print_line=print_line, dry_run=dry_run, force=force, flops=flops, law=law)


@main.command(short_help="What sweep NAME costs before anything runs")
@study_options()
@click.option("--budget", type=float, metavar="SHARE", help="Propose proxies below this share of the target's FLOPs.")
def plan(name: str, overrides: tuple[str, ...], budget: float | None) -> CommandResult:
    """Count what sweep NAME costs before anything runs: trials, FLOPs, share of the target, hours where measured.

    \b
      muxfer plan lr-width
      muxfer plan mmdit-random scale=paper
      muxfer plan lr-width scale=paper --budget 0.03
    """
    from muxfer.commands.plan import plan as run

    return run(name, overrides, budget=budget)


@main.command(short_help="Does the optimum transfer? Of sweep NAME, or of a table")
@study_options(required=False)
@click.option("--table", metavar="FILE.csv", help="Judge a table of runs, one a row, instead of a sweep.")
@click.option("--axis", metavar="COL", help="With --table: the column of the size (width, batch, steps).")
@click.option("--hp", metavar="COL", help="With --table: the column of the setting.")
@click.option("--metric", metavar="COL", help="With --table: the column of the result; empty where a run diverged.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="With --table: the better metric; min if left out.")
@click.option("--log2-hp", is_flag=True, help="With --table: take log2 of the setting; not where it is log2 already.")
@click.option("--seed", metavar="COL", help="With --table: the column that numbers runs of shared randomness.")
@click.option("--where", metavar="COL=VALUE", multiple=True, help="With --table: the rows that count, such as bs=256.")
def verdict(
    name: str | None,
    overrides: tuple[str, ...],
    table: str | None,
    axis: str | None,
    hp: str | None,
    metric: str | None,
    mode: str | None,
    log2_hp: bool,
    seed: str | None,
    where: tuple[str, ...],
) -> CommandResult:
    """Say whether the optimum of sweep NAME, or of a table, transfers along its axis; exit 6 when it is not a yes.

    \b
      muxfer verdict lr-width
      muxfer verdict --table runs.csv --axis width --hp lr --metric loss --log2-hp
    """
    if table is None:
        options = {"axis": axis, "hp": hp, "metric": metric, "mode": mode, "seed": seed, "log2-hp": log2_hp}
        if given := [option for option, value in {**options, "where": where}.items() if value]:
            raise click.UsageError(f"--{min(given)} goes with --table FILE.csv alone")
        if name is None:
            raise click.UsageError("verdict needs the NAME of a sweep, or --table FILE.csv")
        from muxfer.commands.verdict import verdict as judge_study

        return judge_study(name, overrides)
    if name is not None:
        raise click.UsageError(f"--table {table} and the sweep {name!r} exclude each other: give one")
    if axis is None or hp is None or metric is None:
        columns = {"axis": axis, "hp": hp, "metric": metric}
        missing = [f"--{option} COL" for option, column in columns.items() if column is None]
        raise click.UsageError(f"--table needs {', '.join(missing)} as well: the columns to read")
    from muxfer.commands.verdict_table import verdict as judge_table

    mode = mode or "min"
    return judge_table(table, axis=axis, hp=hp, metric=metric, mode=mode, log2_hp=log2_hp, seed=seed, where=where)


@main.command(short_help="Scaling laws of isoFLOP sweep NAME, or of a table")
@study_options(required=False)
@click.option("--table", metavar="FILE.csv", help="Fit a table: flops, params, loss, and tokens or fid if it has them.")
@click.option("--predict", "predict_at", type=click.FloatRange(min=0, min_open=True), metavar="FLOPS", help="A budget.")
@click.option("--against", metavar="NAME", help="Another isoFLOP sweep, its overrides in the same quotes.")
@click.option("--against-table", metavar="FILE.csv", help="Another table.")
@click.option("--figure", metavar="FILE.png", help="Where the figure goes; else beside the study's report.")
def fit(
    name: str | None,
    overrides: tuple[str, ...],
    table: str | None,
    predict_at: float | None,
    against: str | None,
    against_table: str | None,
    figure: str | None,
) -> CommandResult:
    """Fit scaling laws to isoFLOP sweep NAME, or to a table; exit 6 when too few budgets have an optimum.

    \b
      muxfer fit isoflop --predict 1e15
      muxfer fit --table runs.csv --predict 1.5e21 --figure laws.png
      muxfer fit isoflop --against "isoflop model=cross_attention"
    """
    if (name is None) == (table is None):
        raise click.UsageError("fit needs the NAME of an isoFLOP sweep, or --table FILE.csv, and not both")
    if against is not None and against_table is not None:
        raise click.UsageError("--against NAME and --against-table FILE.csv exclude each other: give one")
    from muxfer.commands.fit import fit as run

    return run(
        name, overrides, table=table, predict_at=predict_at, against=against, against_table=against_table, figure=figure
    )


@main.command(short_help="Figures and page of sweep NAME again, from the ledger")
@study_options()
def report(name: str, overrides: tuple[str, ...]) -> CommandResult:
    """Write the figures and the page of sweep NAME again, from the ledger.

    \b
      muxfer report lr-width
    """
    from muxfer.commands.report import report as run

    return run(name, overrides)


@main.command(short_help="How sweep NAME stands, or every study of the ledger")
@study_options(required=False)
@click.option("--watch", is_flag=True, help="Say it again whenever it changes, until nobody drives it.")
def status(name: str | None, overrides: tuple[str, ...], watch: bool) -> CommandResult:
    """Show how sweep NAME stands: its driver, its trials, what runs; without NAME, the studies of the ledger.

    \b
      muxfer status lr-width --watch
    """
    from muxfer.commands.status import status as run

    return run(name, overrides, print_line=print_line, watch=watch)


@main.command(short_help="Run the failed trials of sweep NAME again")
@study_options()
@click.option("--failed", is_flag=True, required=True, help="The trials that failed: the others are settled.")
def retry(name: str, overrides: tuple[str, ...], failed: bool) -> CommandResult:
    """Run the failed trials of sweep NAME again, from their checkpoints, and nothing else.

    \b
      muxfer retry lr-width --failed
    """
    from muxfer.commands.retry import retry as run

    return run(name, overrides, print_line=print_line)


@main.command(short_help="Write the weights of RUN for another library")
@click.argument("run")
@OVERRIDES
@JSON
@PLUGIN
@click.option("--to", type=click.Choice(["diffusers"]), default="diffusers", help="The library that is to load it.")
@click.option("--folder", metavar="DIR", help="Where it goes; else beside the study's trials.")
def export(run: str, overrides: tuple[str, ...], to: str, folder: str | None) -> CommandResult:
    """Write the averaged weights of RUN (a run id of MLflow, a trial's key, or the beginning of one) for others.

    \b
      muxfer export 3f9c --to diffusers
    """
    from muxfer.commands.export import export as export_run

    return export_run(run, overrides, to=to, folder=folder)


@main.command(short_help="One model: its size, each parameter's role and scales")
@study_options()
@click.option("--scales", metavar="FILE.json", help="Write the scales, for a trainer of your own.")
def model(name: str, overrides: tuple[str, ...], scales: str | None) -> CommandResult:
    """Show one model: its size, and every parameter's role and scales. NAME is a sweep, or a model of conf/model.

    Where both have that name, the sweep is meant.

    \b
      muxfer model dit +size=xl_2
      muxfer model lr-width model.width=256 --scales scales.json
    """
    from muxfer.commands.model import model as run

    return run(name, overrides, scales=scales)


@main.command(short_help="Do a model's coordinates stay put as it grows?")
@study_options()
def check(name: str, overrides: tuple[str, ...]) -> CommandResult:
    """Check that a model's coordinates stay put as it grows; exit 6 when they don't. NAME is as for `model`.

    \b
      muxfer check lr-width
      muxfer check dit check.sizes=[64,128,256,512]
      muxfer check dit check=depth optimizer.parametrization=completep model.base_depth=4
    """
    from muxfer.commands.check import check as run

    return run(name, overrides, print_line=print_line)


@main.command(short_help="The whole configuration of sweep NAME, as YAML")
@click.argument("name")
@OVERRIDES
def config(name: str, overrides: tuple[str, ...]) -> CommandResult:
    """Print the whole configuration of sweep NAME, overrides applied, as YAML.

    \b
      muxfer config lr-width model.depth=6
    """
    from muxfer.commands.config import show_config as run

    return run(name, overrides)


@main.command(short_help="Remove checkpoints and reports; the ledger is kept")
@click.argument("name", required=False)
@OVERRIDES
@click.option("--yes", is_flag=True, help="Don't ask.")
def clean(name: str | None, overrides: tuple[str, ...], yes: bool) -> CommandResult:
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

    from muxfer.commands.clean import clean as run

    return run(name, overrides, confirmed=confirmed)


@main.command(short_help="Is everything here that a sweep needs?")
@OVERRIDES
@JSON
def doctor(overrides: tuple[str, ...]) -> CommandResult:
    """Try everything that a sweep needs here: versions, memory, disks, devices, Ray, the ledger; say how to mend it.

    Exit 6 when something here would fail; a warning is none.

    \b
      muxfer doctor
      muxfer doctor ledger.tracking_uri=http://mlflow.lab:5000 compute.address=10.0.0.1:6379
    """
    from muxfer.commands.doctor import doctor as run

    return run("lr-width", overrides)


@main.command(
    cls=click.Command,  # it becomes `mlflow ui`: no result, and stdout as it is
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
