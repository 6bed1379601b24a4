"""Train the target as a trial of the same ledger, and hand out what it reached.

The same loop trains it: typing the command again resumes the target, or finds it done. What is handed out comes from a
checkpoint that passes its manifest. Where the last one does not, the target goes on from the one before.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from muxfer.analysis.loss_band import LossBand, first_breach
from muxfer.errors import BadInput, MuxferError, NoResources, StudyBusy, TrialsFailed
from muxfer.executors.base import Executor
from muxfer.files import TargetFolder, replace_file
from muxfer.redaction import with_variable_names
from muxfer.report.figures.band import band_figure
from muxfer.study.resolve import PrintLine, Request
from muxfer.study.session import Session
from muxfer.transfer.choice import Choice
from muxfer.transfer.guard import Watched
from muxfer.transfer.outputs import is_handed_out, newest_snapshot, write_outputs
from muxfer.transfer.text import failure_text
from muxfer.trial import Record, Trial


def launch_target(session: Session, choice: Choice, *, print_line: PrintLine) -> Record:
    """Train the target and write its files where they are missing. TrialsFailed, with a figure, without a result."""
    _assert_unchanged(session, choice)
    trial = choice.trial
    files, checkpoints = session.files.target(trial.key), session.files.trial(trial.key)
    records: Sequence[Record] = session.records()
    recorded = next((record for record in records if record.key == trial.key), None)
    is_complete = is_handed_out(files, recorded)
    if not is_complete:
        records = _without_damaged(records, trial, checkpoints, print_line)

    def start_executor() -> Executor:
        return Watched(_executor(session.request, session.files.path), choice.watched_band)

    try:
        ran = session.run([trial], records, start_executor=start_executor)
    except TrialsFailed as error:
        drawn = _draw_breach(session, choice, files)
        raise TrialsFailed(f"{error}; its curve: {drawn[0]}" if drawn else str(error)) from None
    record = next(record for record in session.records() if record.key == trial.key)
    if record.metric is None:
        _draw_breach(session, choice, files)
        raise TrialsFailed(failure_text(record, choice.target))
    if ran.records or not is_complete:
        _hand_out(session, choice, record)
    return record


def _assert_unchanged(session: Session, choice: Choice) -> None:
    """StudyBusy when another driver changed the proxies while this command waited for the lease."""
    keys = {trial.key for trial in choice.study.trials}
    now = {record.key: record for record in session.records() if record.key in keys}
    if now != {record.key: record for record in choice.study.records}:
        changed = f"the trials of study {session.study.label} changed while this command waited for it"
        raise StudyBusy(f"{changed}: run the same command again to choose anew")


def _without_damaged(
    records: Sequence[Record], trial: Trial, checkpoints: Path, print_line: PrintLine
) -> Sequence[Record]:
    """The records without a finished target whose last checkpoint is damaged: it is trained on from the one before."""
    done = next((record for record in records if record.key == trial.key and record.metric is not None), None)
    if done is None or (step := newest_snapshot(done, checkpoints).step) == done.step:
        return records
    print_line(f"the target's checkpoint of step {done.step} is damaged: it goes on from that of step {step}")
    return [record for record in records if record is not done]


def _executor(request: Request, folder: Path) -> Executor:
    """The target takes a slot of a joined cluster. Without one it trains in this process, on the whole machine."""
    if request.config.compute.address is not None:
        from muxfer.executors.ray_tune import RayExecutor

        return RayExecutor(request.config.compute, folder=folder)
    import torch

    from muxfer.executors.inline import InlineExecutor

    device = request.config.compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise NoResources("compute.device cuda: this machine has no GPU; use compute.device=cpu or auto")
    return InlineExecutor(device=device)


def _hand_out(session: Session, choice: Choice, record: Record) -> None:
    """Write and record the target's files. The run's id is written last: it says that the files are whole."""
    trial = choice.trial
    files, checkpoints = session.files.target(trial.key), session.files.trial(trial.key)
    trained = newest_snapshot(record, checkpoints)
    if trained.step != record.step:
        raise BadInput(
            f"the target's last checkpoint was damaged as soon as it was written ({checkpoints}): look at the disk,"
            f" then run the same command again to go on from step {trained.step}"
        )
    task: Mapping[str, object] = with_variable_names(trial.task, session.request.variables)
    written = write_outputs(files, replace(trial, task=task), trained, choice.scales, choice.target.task)
    figure, _ = _draw_band(session, choice, files)
    session.ledger.attach([*written, *figure], key=trial.key)
    replace_file(files.run_id, str(record.run_id).encode())


def _draw_band(session: Session, choice: Choice, files: TargetFolder) -> tuple[list[Path], bool]:
    """The figure of the target's loss in its band, as far as it came, and whether the loss left the band."""
    if not isinstance(choice.band, LossBand):
        return [], False
    session.flush()
    curve = session.ledger.curves(session.study, "train_loss").get(choice.trial.key, ())
    points = [(point.step, point.value) for point in curve]
    drawn = band_figure(choice.band, points, files.loss_band, title=f"target of {session.study.name}")
    return drawn, first_breach(choice.band, points) is not None


def _draw_breach(session: Session, choice: Choice, files: TargetFolder) -> list[Path]:
    """The figure where the loss left its band. An error while drawing must not hide why the target failed."""
    with contextlib.suppress(MuxferError):
        drawn, left_band = _draw_band(session, choice, files)
        return drawn if left_band else []
    return []
