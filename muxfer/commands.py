"""What each command does: the concrete parts are built here, from the configuration, and joined.

Every function returns an Answer: the JSON object of its command (see the command line's contract), the same for a
person to read, and the exit code. Heavy libraries are imported where they are first needed.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer import plan
from muxfer.adapters.optuna_search import OptunaSearcher
from muxfer.adapters.tracking_uri import default_tracking_uri, masked
from muxfer.config import Config, to_plain
from muxfer.cost import training_flops
from muxfer.errors import BadInput, NoResources, NotAYes, StudyBusy, TrialsFailed
from muxfer.ledger import Ledger
from muxfer.models import Declared
from muxfer.parse import parse, parse_task
from muxfer.progress import Progress, show_setting
from muxfer.request import Answer, Request, Say, check_writable, driving, open_ledger, request, tracking_uri
from muxfer.study import Ran, run_study, trial_folder
from muxfer.transfer import the_study
from muxfer.trial import Outcome, Record, Study, Trial, Verdict, content_hash
from muxfer.worker import Executor, check_forward, mup_plan

if TYPE_CHECKING:
    from muxfer.analysis.transferability import Best

MAX_CURVES = 200
"""Trials up to which a page shows their training curves: reading one takes some 10 ms."""


def sweep(
    name: str,
    overrides: Sequence[str],
    *,
    say: Say,
    max_hours: float | None = None,
    require_transfer: bool = False,
    skip_if_running: bool = False,
) -> Answer:
    """Bring a study to its finished state, judge it and report."""
    began = time.monotonic()
    asked = request(name, overrides)
    trials = plan.grid_trials(asked.config, fingerprint=asked.fingerprint)
    if isinstance(asked.config.model, Declared):
        _check_models(trials)
    is_new = not (asked.home / "trials").exists()
    check_writable(asked.home)
    say(f"study {asked.study.label}: files in {asked.home}, records in {masked(tracking_uri(asked.config))}")
    with _ray_ahead(asked, likely=is_new) as start_ray, open_ledger(asked) as ledger:
        try:
            with driving(asked, asked.study, ledger, to_plain(asked.config)) as lease:
                before = ledger.records(asked.study)
                searcher = OptunaSearcher(asked.config.search, seed=asked.config.training.seed)
                ran = run_study(
                    plan.trials_of(searcher.ask(before), asked.config, fingerprint=asked.fingerprint),
                    before,
                    study=asked.study,
                    ledger=ledger,
                    lease=lease,
                    start_executor=start_ray,
                    folder=asked.folder,
                    progress=Progress(),
                    deadline=None if max_hours is None else began + 3600 * max_hours,
                )
                ledger.flush(asked.config.ledger.patience_seconds)
                records = records_of(ledger, asked.study, trials)
                judged = judge(records, asked.config, unfinished=ran.unfinished)
                page, stamp = asked.home / "report.html", asked.home / "report.of"
                content = content_hash([[r.key, r.outcome, r.metric] for r in sorted(records, key=lambda r: r.key)])
                if not page.exists() or not stamp.exists() or stamp.read_text() != content:
                    wall_seconds = time.monotonic() - began
                    page = write_report(asked, asked.study, ledger, records, judged, wall_seconds=wall_seconds)
                    ledger.attach([page, *sorted(asked.home.glob("u-curves.*"))])
                    stamp.write_text(content)
        except StudyBusy as error:
            if not skip_if_running:
                raise
            nothing = {"trials": [], "ran": 0, "skipped": len(trials), "train_seconds": 0.0}
            unknown = dict.fromkeys(("best", "verdict", "report"))
            return Answer(data={"sweep": name, "skipped_because": str(error)} | nothing | unknown, text=str(error))
    return _sweep_answer(asked, trials, records, judged, ran, page, require_transfer=require_transfer)


def _check_models(trials: Sequence[Trial]) -> None:
    """Plan every model of the grid on the meta device: a class of others that can't be is refused at once.

    Of our own families the configuration is checked; planning them here too would cost each sweep 3 s of torch.
    """
    for task in {content_hash(trial.task["model"]): trial.task for trial in trials}.values():
        mup_plan(parse_task(task))
    check_forward(parse_task(trials[0].task).model)


def _sweep_answer(
    asked: Request,
    trials: Sequence[Trial],
    records: Sequence[Record],
    judged: Verdict,
    ran: Ran,
    page: Path,
    *,
    require_transfer: bool,
) -> Answer:
    from muxfer.tables import table_text

    by_key = {record.key: record for record in records}
    best = best_of(records, asked.config)
    failed = [record for record in records if record.outcome is Outcome.FAILED]
    data = {
        "sweep": asked.name,
        "study": asked.study.key,
        "trials": [
            {
                "key": trial.key,
                "setting": dict(trial.setting),
                "replicate": trial.replicate,
                "outcome": str(by_key[trial.key].outcome) if trial.key in by_key else None,
                "metric": by_key[trial.key].metric if trial.key in by_key else None,
                "step": by_key[trial.key].step if trial.key in by_key else 0,
                "resumed": trial.key in by_key and by_key[trial.key].resumed_at > 0,
            }
            for trial in trials
        ],
        "ran": len(ran.records),
        "skipped": len(trials) - len(ran.records) - ran.unfinished,
        "unfinished": ran.unfinished,
        "train_seconds": round(ran.train_seconds, 3),
        "best": None if best is None else {"setting": dict(best.setting), "metric": best.metric},
        "verdict": judged.to_dict(),
        "report": str(page),
        "folder": str(asked.home),
    }
    lines = [table_text(records, judged), "", f"report: {page}"]
    if failed:
        lines.append(f"{len(failed)} trials failed, the first: {failed[0].error}; type the same command to try again")
    if ran.unfinished:
        lines.append(f"{ran.unfinished} trials are still to run; type the same command to go on")
    exit_code = 0
    if failed:
        exit_code = TrialsFailed.exit_code
    elif require_transfer and judged.verdict != "transfers":
        exit_code = NotAYes.exit_code
    return Answer(data=data, text="\n".join(lines), exit_code=exit_code)


def records_of(ledger: Ledger, study: Study, trials: Sequence[Trial]) -> list[Record]:
    """The settled records of these trials: what a verdict, a page and a transfer read."""
    wanted = {trial.key for trial in trials}
    return [record for record in ledger.records(study) if record.key in wanted]


def judge(records: Sequence[Record], config: Config, *, unfinished: int = 0) -> Verdict:
    """The verdict on these records; a study with trials still to run is never said to transfer."""
    from muxfer.analysis import transferability

    judged = transferability.judge(records, axis=config.search.axis, hp=config.search.hp)
    if unfinished and judged.verdict == "transfers":
        return replace(judged, verdict="abstains", why=f"{unfinished} trials are still to run; so far {judged.why}")
    return judged


def best_of(records: Sequence[Record], config: Config) -> "Best | None":
    from muxfer.analysis.transferability import best_setting

    return best_setting(records, axis=config.search.axis, hp=config.search.hp)


@contextmanager
def _ray_ahead(asked: Request, *, likely: bool) -> Iterator[Callable[[], Executor]]:
    """Ray on demand. It takes seconds to start: where work is likely it does so while the ledger is opened."""

    def start() -> Executor:
        from muxfer.adapters.ray_tune import RayExecutor

        return RayExecutor(asked.config.compute, folder=asked.home)

    if not likely:
        yield start
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        started = pool.submit(start)
        taken = False
        if asked.config.compute.slots is not None or asked.config.compute.device != "auto":
            try:  # may be more than there is: say so before the ledger hears of the study
                started.result()
            except NoResources:
                for folder in (asked.home, asked.folder):
                    with contextlib.suppress(OSError):  # not empty: it was there before
                        folder.rmdir()
                raise

        def take() -> Executor:
            nonlocal taken
            taken = True
            return started.result()

        try:
            yield take
        finally:
            if not taken and started.exception() is None:
                started.result().close()


def write_report(
    asked: Request,
    study: Study,
    ledger: Ledger,
    records: Sequence[Record],
    judged: Verdict,
    *,
    wall_seconds: float | None,
) -> Path:
    """The study's figures and page; training curves are left out where reading them would take long."""
    from muxfer import report as reporting

    public = [override for override in asked.overrides if not override.lstrip("+").startswith("ledger")]
    again = " ".join(shlex.quote(word) for word in (asked.name, *public))
    context: reporting.Context = {
        "description": asked.config.description,
        "command": f"muxfer sweep {again}",
        "next_command": f"muxfer transfer {again}",
        "environment": environment(),
    }
    if len(records) <= MAX_CURVES:
        context["points"] = ledger.curves(study, "train_loss")
    if wall_seconds is not None:
        context["wall_seconds"] = wall_seconds
    home = asked.folder / study.label
    return reporting.write(asked.name, home, records, judged, context=context)


def environment() -> dict[str, str]:
    """What the numbers were made with: versions and cores. No names of hosts, users or folders."""
    packages = ("muxfer", "torch", "ray", "optuna", "mlflow", "hydra-core")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **versions, "cores": str(os.cpu_count())}


def dry_run(name: str, overrides: Sequence[str]) -> Answer:
    """Each trial that `sweep` would look after: done, to resume at a step, or to run."""
    from muxfer.worker import measure, resume_step

    asked = request(name, overrides)
    trials = plan.grid_trials(asked.config, fingerprint=asked.fingerprint)
    with open_ledger(asked) as ledger:
        records = {record.key: record for record in ledger.records(asked.study)}
    rows: list[dict[str, Any]] = []
    for trial in trials:
        record = records.get(trial.key)
        step = resume_step(trial_folder(asked.folder, asked.study, trial), key=trial.key)
        state = "done" if record and record.outcome.settled else f"resume at {step}" if step else "run"
        task = parse_task(trial.task)
        cost = measure(task.model)
        flops = training_flops(cost.macs, samples=task.training.steps * task.training.batch_size)
        hours = None if record is None else record.train_seconds / 3600
        rows.append(
            {"key": trial.key, "setting": dict(trial.setting), "replicate": trial.replicate, "state": state}
            | {"parameters": cost.parameters, "flops": flops, "hours": hours}
        )
    lines = [
        f"{row['key']}  {show_setting(row['setting']):<30} seed {row['replicate']}  {row['flops']:.2e} FLOPs  "
        f"{row['state']}"
        for row in rows
    ]
    return Answer(data={"sweep": name, "study": asked.study.key, "trials": rows}, text="\n".join(lines))


def recorded(asked: Request, ledger: Ledger) -> tuple[Study, Config, list[Trial]]:
    """The recorded study that was meant, the configuration that it was last driven with, and its trials."""
    study = the_study(ledger.studies(asked.name), asked.study, asked.overridden)
    if study.identity["data_fingerprint"] != asked.fingerprint:
        raise BadInput(
            f"the data are not those of study {study.label}: give the sweep's own overrides (data=..., data.path=...)"
        )
    config = parse(ledger.config(study))
    return study, config, plan.grid_trials(config, fingerprint=asked.fingerprint)


def verdict(name: str, overrides: Sequence[str]) -> Answer:
    """Does the optimum of a recorded study transfer along its axis?"""
    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config, trials = recorded(asked, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(plan.remaining(trials, records)))
    text = f"{judged.verdict}: {judged.why}"
    return Answer(data=judged.to_dict(), text=text, exit_code=0 if judged.verdict == "transfers" else NotAYes.exit_code)


def report(name: str, overrides: Sequence[str]) -> Answer:
    """Write a recorded study's figures and page again."""
    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config, trials = recorded(asked, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(plan.remaining(trials, records)))
        check_writable(asked.folder / study.label)
        page = write_report(asked, study, ledger, records, judged, wall_seconds=None)
    return Answer(data={"report": str(page)}, text=f"report: {page}")


def show_config(name: str, overrides: Sequence[str]) -> Answer:
    """The whole configuration, overrides applied."""
    from muxfer.adapters.hydra_compose import compose, to_yaml

    plain = compose(name, overrides)
    parse(plain)
    return Answer(data=plain, text=to_yaml(plain))


def clean(name: str | None, overrides: Sequence[str], *, confirmed: Callable[[str], bool]) -> Answer:
    """Remove the files of a study (of every study of that name without overrides, of all without a name), after asking.

    The ledger is kept. Refused where a driver is at work, or where a spool holds what the ledger has not yet taken.
    """
    asked = request(name or "lr-width", overrides)
    label = re.compile(f"{re.escape(name) if name else '.+'}-[0-9a-f]{{8}}")
    homes = sorted(home for home in asked.folder.glob("*") if label.fullmatch(home.name) and home.is_dir())
    if overrides:
        homes = [home for home in homes if home == asked.home]
    if not homes:
        return Answer(data={"removed": []}, text=f"nothing to remove in {asked.folder}")
    for home in homes:
        if spools := list(home.glob("spool-*.jsonl")):
            raise BadInput(
                f"{spools[0]} holds what the ledger has not taken yet, or a sweep is at work:"
                f" let muxfer sweep {name or ''} finish first"
            )
    megabytes = {home: sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) / 1e6 for home in homes}
    told = "\n".join(f"  {home} ({size:.1f} MB)" for home, size in megabytes.items())
    if not confirmed(f"checkpoints, samples and reports in\n{told}\nThe ledger is kept. Remove them?"):
        return Answer(data={"removed": []}, text="nothing was removed")
    for home in homes:
        shutil.rmtree(home)
    return Answer(data={"removed": [str(home) for home in homes]}, text=f"removed {len(homes)} folders")


def ui_arguments() -> list[str]:
    """What `mlflow ui` must be told to show the ledger of this folder."""
    return ["--backend-store-uri", default_tracking_uri()]
