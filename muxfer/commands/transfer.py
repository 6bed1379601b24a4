"""The transfer command: the best base settings of a recorded study, the target's plan, the target itself, its samples.

The target is a trial in the same ledger, trained by the same loop: typing the command again resumes it, or finds it
done. It is recorded with its lineage: the source study, the winning trial, the hash of the plan that scaled it. While
it trains it is watched (`muxfer.guard`). What it hands out is what a checkpoint holds that passes its manifest: where
the last one does not, the target goes on from the one before; where none does, the command refuses.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muxfer.analysis.loss_band import LossBand, first_breach
from muxfer.analysis.transferability import inside_grid
from muxfer.commands.result import CommandResult
from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.errors import BadInput, MuxferError, StudyBusy, TrialsFailed
from muxfer.executors.base import Executor
from muxfer.files import validate_writable
from muxfer.models.build import scale_plan
from muxfer.models.count import measure
from muxfer.mup import validate_same_base
from muxfer.redaction import with_variable_names
from muxfer.report.figures import replace_file
from muxfer.report.figures.band import band_figure
from muxfer.report.format import show_setting
from muxfer.study.cost import tuning_ratio
from muxfer.study.loop import run_study, trial_folder
from muxfer.study.match import proxy_task
from muxfer.study.progress import Progress
from muxfer.study.recorded import best_of, expect_taken, judge, outside, recorded, records_of
from muxfer.study.resolve import PrintLine, Request, resolve
from muxfer.study.search import searched
from muxfer.study.session import driving, open_ledger
from muxfer.study.trials import remaining
from muxfer.transfer.guard import Watched, target_band
from muxfer.transfer.outputs import WEIGHTS, is_out, newest, that_hold, write_results
from muxfer.transfer.sizing import sized_target
from muxfer.transfer.target import target_run, value_text
from muxfer.transfer.text import base_depth, ended, scale_groups, scales_text, settings_text, watch_text
from muxfer.trial import Record

if TYPE_CHECKING:
    pass


def transfer(
    name: str,
    overrides: Sequence[str],
    *,
    print_line: PrintLine,
    dry_run: bool = False,
    force: bool = False,
    flops: float | None = None,
    law: str | None = None,
) -> CommandResult:
    """Choose the best base settings of a study and launch the target with them.

    `flops` sizes the target by the fit of the isoFLOP study `law`; None: of the study itself.
    """
    from muxfer.data.source import load_dataset

    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study, config, trials = recorded(request, ledger)
        home = request.folder / study.label
        validate_writable(home)
        proxies = records_of(ledger, study, trials)
        judged = judge(proxies, config)
        base = proxy_task(config, study)
        best = best_of(proxies, config)
        sized: list[str] = []
        if flops is not None and best is not None:
            given, told = sized_target(request, with_setting(base, best.setting), flops, law)
            request = replace(request, config=replace(request.config, target=given))
            sized = [told]
        target = target_run(
            request.config,
            study,
            verdict=judged,
            best=best,
            inside=inside_grid(searched(config.search, proxies), axis=config.search.axis, hp=config.search.hp),
            unfinished=len(remaining(trials, proxies)),
            fingerprint=request.fingerprint,
            num_pictures=len(load_dataset(request.config.data).train),
            force=force,
        )
        task = target.task
        scales = scale_plan(task)
        validate_same_base(scale_plan(target.proxy), scales)
        curves = ledger.curves(study, "train_loss")
        band = target_band(target, base, proxies, curves, axis=config.search.axis)
        watching = band if isinstance(band, LossBand) and request.config.target.guarded else None
        choice = [
            f"{study.label}: best at {show_setting(target.winner.setting)}, validation loss {target.proxy_metric:.4f}",
            f"verdict: {judged.verdict}: {judged.why}",
            *sized,
            *outside(ledger, study, trials),
            *(f"forced: {objection}" for objection in target.forced),
            scales_text(scales, task),
            settings_text(target.settings),
            watch_text(band, guarded=request.config.target.guarded),
        ]
        data: dict[str, Any] = {
            "source": {"sweep": name, "study": study.key, "trial": target.winner.key, "plan_hash": scales.hash},
            "setting": dict(target.trial.setting),
            "target": {"model": task.model.family, "width": task.model.width, "steps": task.training.steps},
            "proxy_metric": target.proxy_metric,
            "tuning_ratio": _tuning_ratio(proxies, base, task),
            "groups": scale_groups(scales, task),
            "settings": [asdict(one) for one in target.settings],
            "sized": sized[0] if sized else None,
            "guard": {"watched": watching is not None, "why": None if isinstance(band, LossBand) else band},
            "forced": list(target.forced),
        }
        if dry_run:
            empty = {"metric": None, "run_id": None, "checkpoint": None}
            return CommandResult(data=data | empty, text="\n".join([*choice, "dry run: nothing was launched"]))
        print_line("\n".join(choice))
        trial = replace(target.trial, lineage={**target.lineage, "plan_hash": scales.hash})
        folder = home / f"target-{trial.key[:8]}"
        checkpoints, mark = trial_folder(request.folder, study, trial), folder / "target.of"

        def draw() -> tuple[list[Path], bool]:
            """The picture of the target's loss in its band, as far as it came, and whether it left it."""
            if not isinstance(band, LossBand):
                return [], False
            ledger.flush(request.config.ledger.patience_seconds)
            points = [(point.step, point.value) for point in ledger.curves(study, "train_loss").get(trial.key, ())]
            files = band_figure(band, points, folder / "target-band", title=f"target of {study.name}")
            return files, first_breach(band, points) is not None

        def draw_anyhow() -> list[Path]:
            """For a target that failed: why it did is told, whatever the drawing meets."""
            with contextlib.suppress(MuxferError):
                drawn, left = draw()
                return drawn if left else []
            return []

        with driving(request, study, ledger, None) as lease:
            records = ledger.records(study)
            known = {record.key: record for record in proxies}
            if {record.key: record for record in records_of(ledger, study, trials)} != known:  # another drove meanwhile
                raise StudyBusy(
                    f"the trials of study {study.label} changed while this command waited for it: run the same command"
                    " again to choose anew"
                )
            is_whole = is_out(folder, next((record for record in records if record.key == trial.key), None))
            try:
                ran = run_study(
                    [trial],
                    records if is_whole else that_hold(records, trial, checkpoints, print_line),
                    study=study,
                    ledger=ledger,
                    lease=lease,
                    start_executor=lambda: Watched(_executor(request, home), watching),
                    folder=request.folder,
                    progress=Progress(),
                )
            except TrialsFailed as error:
                drawn = draw_anyhow()
                raise TrialsFailed(f"{error}; its curve: {drawn[0]}" if drawn else str(error)) from None
            ledger.flush(request.config.ledger.patience_seconds)
            expect_taken(ledger, study, ran.records)
            record = next(record for record in ledger.records(study) if record.key == trial.key)
            if record.metric is None:
                draw_anyhow()
                raise TrialsFailed(ended(record, target))
            shown = replace(trial, task=with_variable_names(trial.task, request.variables))
            if ran.records or not is_whole:
                trained = newest(record, checkpoints)
                if trained.step != record.step:
                    raise BadInput(
                        f"the target's last checkpoint was damaged as soon as it was written ({checkpoints}): look at"
                        f" the disk, then run the same command again to go on from step {trained.step}"
                    )
                files = write_results(folder, replace(target, trial=shown), trained, scales, task)
                ledger.attach([*files, *draw()[0]], key=trial.key)
                replace_file(mark, str(record.run_id).encode())
        from muxfer.report.target_page import write_target

        origin = {
            "source": f"sweep {study.name}, study {study.key}",
            "winning trial": f"{target.winner.key}, {show_setting(target.winner.setting)}",
            "plan": f"{scales.hash}, {scales.parametrization} with base width {scales.base_width}{base_depth(scales)}",
            **{one.name: f"{one.how}: {value_text(one.target)}, {one.why}" for one in target.settings},
            **({"forced": "; ".join(target.forced)} if target.forced else {}),
        }
        page = write_target(
            name,
            home,
            record,
            searched(config.search, proxies),
            judged,
            samples=folder / "samples.png",
            lineage=origin,
            band=folder / "target-band.svg",
        )
    data |= {"metric": record.metric, "run_id": record.run_id, "checkpoint": str(folder / WEIGHTS)}
    data |= {"samples": str(folder / "samples.png"), "report": str(page)}
    lowest = min(proxy.metric for proxy in proxies if proxy.metric is not None)
    better = "below every proxy's" if record.metric < lowest else "NOT below every proxy's"
    lines = [
        f"target: validation loss {record.metric:.4f}, {better} (the lowest is {lowest:.4f})",
        f"tuning cost {100 * data['tuning_ratio']:.1f} % of the target (trials x parameters x samples)",
        f"weights: {data['checkpoint']}",
        f"samples: {data['samples']}",
        f"report:  {page}",
    ]
    return CommandResult(data=data, text="\n".join(lines))


def _tuning_ratio(proxies: Sequence[Record], base: Task, target: Task) -> float:
    spent = []
    for record in proxies:
        batch_size = with_setting(base, record.setting).training.batch_size
        spent.append((record.num_parameters, record.step * batch_size))
    return tuning_ratio(spent, (measure(target.model).parameters, target.training.steps * target.training.batch_size))


def _executor(request: Request, home: Path) -> Executor:
    """The target takes a joined cluster's slot; on this machine it has all of it, in this very process."""
    if request.config.compute.address is not None:
        from muxfer.executors.ray_tune import RayExecutor

        return RayExecutor(request.config.compute, folder=home)
    import torch

    from muxfer.executors.inline import InlineExecutor

    device = request.config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        from muxfer.errors import NoResources

        raise NoResources("compute.device cuda: this machine has no GPU; use compute.device=cpu or auto")
    return InlineExecutor(device=device)
