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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer import plan
from muxfer.adapters.mlflow_client import NO_TELEMETRY
from muxfer.adapters.tracking_uri import default_tracking_uri, masked
from muxfer.config import Config
from muxfer.environment import hidden
from muxfer.errors import BadInput, NotAYes, StudyBusy, TrialsFailed
from muxfer.figures import replace_file
from muxfer.form import content_of
from muxfer.ledger import Ledger
from muxfer.models import Declared
from muxfer.parse import parse, parse_task
from muxfer.progress import Progress, show_setting
from muxfer.proposal import proposing
from muxfer.recorded import best_of, expect_taken, judge, outside, recorded, records_of
from muxfer.request import Answer, Request, Say, check_writable, driving, open_ledger, request, tracking_uri
from muxfer.retention import planned
from muxfer.search import is_finalist, searched
from muxfer.study import Ran, run_study
from muxfer.task import to_plain
from muxfer.transfer import studies_that_fit
from muxfer.trial import NUMERICS_VERSION, Outcome, Record, Study, Trial, Verdict, content_hash
from muxfer.worker import Executor, check_forward, mup_plan

if TYPE_CHECKING:
    from muxfer.analysis.proxy_size import ProxyFront

FIGURES = (".png", ".svg", ".csv")

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
    propose = proposing(asked.config, fingerprint=asked.fingerprint)
    trials = propose([])
    if isinstance(asked.config.model, Declared):
        _check_models(trials)
    retention = planned(asked.config, trials, folder=asked.home / "trials", say=say)
    with (
        _study_folder(asked, say) as is_new,
        _ray_ahead(asked, asked.home, likely=is_new) as start_ray,
        open_ledger(asked) as ledger,
    ):
        try:
            with driving(asked, asked.study, ledger, to_plain(asked.config)) as lease:
                before = ledger.records(asked.study)
                ran = run_study(
                    propose(before),
                    before,
                    study=asked.study,
                    ledger=ledger,
                    lease=lease,
                    start_executor=start_ray,
                    folder=asked.folder,
                    progress=Progress(),
                    more=propose,
                    deadline=None if max_hours is None else began + 3600 * max_hours,
                    retention=retention,
                )
                ledger.flush(asked.config.ledger.patience_seconds)
                expect_taken(ledger, asked.study, ran.records)
                trials = propose(ledger.records(asked.study))
                left_out = outside(ledger, asked.study, trials)
                records = records_of(ledger, asked.study, trials)
                judged = judge(records, asked.config, unfinished=ran.unfinished)
                page, stamp = asked.home / "report.html", asked.home / "report.of"
                shown = [[r.key, r.outcome, r.metric, r.run_id] for r in sorted(records, key=lambda r: r.key)]
                content = content_hash(shown).encode()  # another ledger, which has no page yet, has other runs
                if not page.is_file() or content_of(stamp) != content:
                    wall_seconds = time.monotonic() - began
                    page = write_report(
                        asked, asked.study, asked.config, ledger, records, judged, wall_seconds=wall_seconds
                    )
                    ledger.attach([page, *sorted(f for f in asked.home.iterdir() if f.suffix in FIGURES)])
                    replace_file(stamp, content)
        except StudyBusy as error:
            if not skip_if_running:
                raise
            nothing = {"trials": [], "ran": 0, "skipped": len(trials), "train_seconds": 0.0}
            unknown = dict.fromkeys(("best", "verdict", "report"))
            return Answer(data={"sweep": name, "skipped_because": str(error)} | nothing | unknown, text=str(error))
    return _sweep_answer(asked, trials, records, judged, ran, page, left_out, require_transfer=require_transfer)


@contextmanager
def _study_folder(asked: Request, say: Say) -> Iterator[bool]:
    """The study's folder; where the command made it and ends with an error before it is used, it goes again.

    Whether it came into being here: of drivers that start at once one alone starts Ray ahead. Eight Rays that start
    together on two cores starve, and the one that is needed dies with the others.
    """
    is_new = True
    try:
        asked.home.mkdir(parents=True)
    except OSError:
        is_new = False
    check_writable(asked.home)
    say(f"study {asked.study.label}: files in {asked.home}, records in {masked(tracking_uri(asked.config))}")
    try:
        yield is_new
    except BaseException:
        for folder in (asked.home, asked.folder) if is_new else ():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        raise


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
    left_out: Sequence[str],
    *,
    require_transfer: bool,
) -> Answer:
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
                **({"error": error} if (error := by_key[trial.key].error if trial.key in by_key else None) else {}),
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
    law, told = _told(records, judged, asked.config)
    data |= {} if law is None else {"fit": law}
    if best is not None and is_finalist(asked.config.search, best.records[0]):
        told += f"\nbest of the finalists: {show_setting(best.setting)}, validation loss {best.metric:.4f}"
    lines = [told, "", *left_out, f"report: {page}"]
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


def _told(records: Sequence[Record], judged: Verdict, config: Config) -> tuple[dict[str, Any] | None, str]:
    """What a sweep ends with: its losses and the verdict, or of an isoFLOP study the laws, as JSON too."""
    if config.search.sampler != "isoflop":
        from muxfer.tables import table_text

        return None, table_text(searched(config.search, records), judged)
    from muxfer.analysis.parametric_law import fit_parametric
    from muxfer.analysis.scaling_law import fit_isoflop
    from muxfer.fit import fit_data, fit_lines
    from muxfer.isoflop import points_of

    points = points_of(records, config.task)
    found, parametric = fit_isoflop(points), fit_parametric(points)
    return fit_data(found, parametric, None), "\n".join(fit_lines(found, parametric, None))


@contextmanager
def _ray_ahead(asked: Request, home: Path, *, likely: bool) -> Iterator[Callable[[], Executor]]:
    """Ray on demand, for the study whose folder is `home`.

    It takes seconds to start: where work is likely it does so while the ledger is opened.
    """
    from muxfer.adapters import ray_sessions

    ray_sessions.sweep()  # what a killed driver left must go even where nothing is left to run

    def start() -> Executor:
        from muxfer.adapters.ray_tune import RayExecutor

        return RayExecutor(asked.config.compute, folder=home)

    if not likely:
        yield start
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        started = pool.submit(start)
        taken = False
        if asked.config.compute.slots is not None or asked.config.compute.device != "auto":
            started.result()  # may be more than there is: say so before the ledger hears of the study

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
    config: Config,
    ledger: Ledger,
    records: Sequence[Record],
    judged: Verdict,
    *,
    wall_seconds: float | None = None,
    costs: Mapping[str, Any] | None = None,
) -> Path:
    """The study's figures and page; training curves are left out where reading them would take long."""
    from muxfer import report as reporting
    from muxfer.adapters.optuna_search import importances

    public = [override for override in asked.overrides if not override.lstrip("+").startswith("ledger")]
    again = " ".join(shlex.quote(word) for word in (asked.name, *public))
    context: reporting.Context = {
        "description": asked.description,
        "command": f"muxfer sweep {again}",
        "next_command": f"muxfer {'fit' if config.search.sampler == 'isoflop' else 'transfer'} {again}",
        "environment": environment(),
        "check": asked.folder / f"check-{asked.name}",
    }
    if config.search.sampler == "isoflop":
        from muxfer.analysis.scaling_law import fit_isoflop
        from muxfer.isoflop import points_of

        context["fit"] = fit_isoflop(points_of(records, config.task))
    elif found := importances(records, config.search):
        context["importances"] = found
    if config.search.sampler == "grid" and (front := _front(records, config)).candidates:
        context["front"] = front
    if costs is not None:
        context["plan"] = costs
    if len(records) <= MAX_CURVES:
        context["points"] = ledger.curves(study, "train_loss")
    if wall_seconds is not None:
        context["wall_seconds"] = wall_seconds
    home = asked.folder / study.label
    return reporting.write(asked.name, home, searched(config.search, records), judged, context=context)


def _front(records: Sequence[Record], config: Config) -> "ProxyFront":
    """What each task of the study costs, in parameters x samples, and what its choice loses at the largest."""
    from muxfer.analysis.proxy_size import parameters_times_samples, proxy_front

    return proxy_front(records, hp=config.search.hp, cost=parameters_times_samples(config.training.batch_size))


def environment() -> dict[str, str]:
    """What the numbers were made with: versions and cores. No names of hosts, users or folders."""
    packages = ("muxfer", "torch", "ray", "optuna", "mlflow", "hydra-core")
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **versions, "cores": str(os.cpu_count())}


def retry(name: str, overrides: Sequence[str], *, say: Say) -> Answer:
    """Run the failed trials of a recorded study again, and nothing else; they go on from their checkpoints."""
    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config, trials = recorded(asked, ledger)
        if study.identity["numerics"] != NUMERICS_VERSION:
            raise BadInput(
                f"study {study.label} was trained with numerics {study.identity['numerics']}, this version has"
                f" {NUMERICS_VERSION}: its trials can't be gone on with; muxfer sweep {name} makes a study of its own"
            )

        def lost(records: Sequence[Record]) -> list[Trial]:
            failed = {record.key for record in records if record.outcome is Outcome.FAILED}
            return [trial for trial in trials if trial.key in failed]

        again = lost(ledger.records(study))
        data: dict[str, Any] = {"sweep": name, "study": study.key, "retried": len(again), "failed": 0, "trials": []}
        if not again:
            return Answer(data=data, text=f"no trial of {study.label} has failed")
        say(f"study {study.label}: {len(again)} failed trials, once more")
        config = replace(config, compute=asked.config.compute, checkpoints=asked.config.checkpoints)
        home = asked.folder / study.label
        retention = planned(config, trials, folder=home / "trials", say=say)
        with _ray_ahead(asked, home, likely=False) as start_ray, driving(asked, study, ledger, None) as lease:
            records = ledger.records(study)  # once more: another driver may have settled some while we waited for it
            again = lost(records)
            ran = run_study(
                again,
                records,
                study=study,
                ledger=ledger,
                lease=lease,
                start_executor=start_ray,
                folder=asked.folder,
                progress=Progress(),
                retention=retention,
            )
            ledger.flush(asked.config.ledger.patience_seconds)
            expect_taken(ledger, study, ran.records)
    failed = [record for record in ran.records if record.outcome is Outcome.FAILED]
    data |= {
        "retried": len(again),
        "failed": len(failed),
        "trials": [{"key": r.key, "outcome": str(r.outcome)} for r in ran.records],
    }
    text = f"{len(ran.records) - len(failed)} of {len(again)} failed trials are settled now"
    if not again:
        text = f"no trial of {study.label} has failed any more: another driver settled them meanwhile"
    if failed:
        text += f"; the first that failed again: {failed[0].error}"
    elif again:
        text += f"; write the page again with: muxfer report {shlex.join([name, *overrides])}"
    return Answer(data=data, text=text, exit_code=TrialsFailed.exit_code if failed else 0)


def verdict(name: str, overrides: Sequence[str]) -> Answer:
    """Does the optimum of a recorded study transfer along its axis?"""
    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config, trials = recorded(asked, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(plan.remaining(trials, records)))
        left_out = outside(ledger, study, trials)
    from muxfer.tables import table_text

    text = "\n".join([table_text(searched(config.search, records), judged), *left_out])
    return Answer(data=judged.to_dict(), text=text, exit_code=0 if judged.verdict == "transfers" else NotAYes.exit_code)


def report(name: str, overrides: Sequence[str]) -> Answer:
    """Write a recorded study's figures and page again, with what the study and its target cost."""
    from muxfer.budget import costs

    asked = request(name, overrides)
    with open_ledger(asked, existing=True) as ledger:
        study, config, trials = recorded(asked, ledger)
        records = records_of(ledger, study, trials)
        judged = judge(records, config, unfinished=len(plan.remaining(trials, records)))
        check_writable(asked.folder / study.label)
        spent, _ = costs(replace(asked, config=config, study=study))
        page = write_report(asked, study, config, ledger, records, judged, costs=spent)
    return Answer(data={"report": str(page)}, text=f"report: {page}")


def show_config(name: str, overrides: Sequence[str]) -> Answer:
    """The whole configuration, overrides applied; what the environment gives stands there by its name."""
    from muxfer.adapters.hydra_compose import composed, to_yaml

    found = composed(name, overrides)
    parse(found.plain)
    plain = hidden(found.plain, found.variables)
    return Answer(data=plain, text=to_yaml(plain))


def clean(name: str | None, overrides: Sequence[str], *, confirmed: Callable[[str], bool]) -> Answer:
    """Remove the files of a study (of every study of that name without overrides, of all without a name), after asking.

    The ledger is kept. Refused where a driver is at work, or may be on another host, and where a spool holds what the
    ledger has not yet taken. A study that the ledger does not know is left: who drives it is known to another one.
    """
    asked = request(name or "lr-width", overrides)
    label = re.compile(f"{re.escape(name) if name else '.+'}-[0-9a-f]{{8}}")
    found = sorted(home for home in asked.folder.glob("*") if label.fullmatch(home.name) and home.is_dir())
    if not found:
        return Answer(data={"removed": [], "left": []}, text=f"nothing to remove in {asked.folder}")
    with open_ledger(asked) as ledger:
        studies = [study for study in ledger.studies(name) if asked.folder / study.label in found]
        if asked.overridden:
            fitting = studies_that_fit(studies, asked.study, asked.overridden)
            if not fitting:
                known = ", ".join(study.label for study in studies) or "none"
                given = " ".join(override for override in overrides if not override.lstrip("+").startswith("ledger"))
                raise BadInput(
                    f"no study {name} with {given} has files in {asked.folder}: those there are"
                    f" {known}; leave the overrides out to clean them all"
                )
            studies, found = fitting, [asked.folder / study.label for study in fitting]
        for study in studies:
            holder = ledger.driver(study)
            if holder is not None and holder.alive() is not False:
                raise StudyBusy(f"study {study.label} is being driven: {holder}; stop it first, nothing was removed")
    homes = sorted({asked.folder / study.label for study in studies})
    left = [home for home in found if home not in homes]
    told_left = (
        f"left {', '.join(map(str, left))}: what is there is not in the ledger {masked(tracking_uri(asked.config))},"
        " and another's driver may be at work; clean it with its own, MLFLOW_TRACKING_URI=URI, or remove it by hand"
    )
    if not homes:
        raise BadInput(told_left)
    if linked := [home for home in homes if home.is_symlink()]:
        raise BadInput(
            f"{linked[0]} is a link to {os.path.realpath(linked[0])}: remove the link and what it leads to by hand;"
            " nothing was removed"
        )
    _expect_delivered(homes)
    megabytes = {home: sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) / 1e6 for home in homes}
    told = "\n".join(f"  {home} ({size:.1f} MB)" for home, size in megabytes.items())
    if not confirmed(f"checkpoints, samples and reports in\n{told}\nThe ledger is kept. Remove them?"):
        return Answer(data={"removed": [], "left": []}, text="nothing was removed")
    with contextlib.ExitStack() as held:
        ledger = held.enter_context(open_ledger(asked))
        for study in studies:  # a person takes time to answer, and meanwhile one may have been started
            held.callback(ledger.acquire(study).release)
        _expect_delivered(homes)
        for home in homes:
            try:
                shutil.rmtree(home)
            except OSError as error:
                raise BadInput(
                    f"{home} can't be removed as a whole ({error.strerror or error}): mend that, then run the same"
                    " command again"
                ) from None
    data = {"removed": [str(home) for home in homes], "left": [str(home) for home in left]}
    text = f"removed {len(homes)} folders"
    return Answer(data=data, text=f"{text}\n{told_left}" if left else text)


def _expect_delivered(homes: Sequence[Path]) -> None:
    for home in homes:
        if spools := list(home.glob("spool-*.jsonl")):
            raise BadInput(
                f"{spools[0]} holds what the ledger has not taken yet: let muxfer sweep {home.name[:-9]} finish first"
                " with the ledger that it was written for, MLFLOW_TRACKING_URI=URI, or remove that file by hand"
            )


def ui_environment() -> dict[str, str]:
    """How `mlflow ui` is told of the ledger of this folder, not as an argument, which every user can read; and to keep
    its usage to itself, unless the user said otherwise.
    """
    quiet = {name: value for name, value in NO_TELEMETRY.items() if name not in os.environ}
    return {**quiet, "MLFLOW_BACKEND_STORE_URI": default_tracking_uri()}
