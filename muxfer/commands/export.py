"""`muxfer export`: the averaged weights of a recorded run, as a folder that another library loads.

The ledger names the run. The model comes from the study's identity, or from a target's own files, and the weights from
the checkpoint. Refused are a run that the ledger lacks or that did not finish, the beginning of several names, weights
that are not on this host, and a folder that holds anything but an earlier export.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from muxfer.commands.result import CommandResult
from muxfer.config.models import Model
from muxfer.config.parse import parse_part
from muxfer.config.settings import place_of
from muxfer.errors import BadInput
from muxfer.files import StudyFolder, content_of, user_path
from muxfer.ledger.base import Ledger
from muxfer.ledger.tracking_uri import redact_uri
from muxfer.processes import gone
from muxfer.redaction import with_values
from muxfer.study.resolve import resolve_without_data, tracking_uri
from muxfer.study.session import open_ledger
from muxfer.transfer.outputs import verified_weights
from muxfer.trial import Outcome, Record, Study

if TYPE_CHECKING:
    import torch

EXPORTED = re.compile(r"config\.json|.*\.safetensors(\.index\.json)?")  # Names of the files that an export consists of
MOST_SHOWN = 5


def export(run: str, overrides: Sequence[str], *, to: str, folder: str | None) -> CommandResult:
    """Write a finished trial or target as a model of library `to`. `run` is its run id, its key or the start of one."""
    from muxfer.models.diffusers_weights import save, to_diffusers

    assert to == "diffusers"
    for override in overrides:
        if not override.startswith("ledger."):
            raise BadInput(f"override {override[:60]!r} has no effect on an export: give ledger.KEY=VALUE alone")
    request = resolve_without_data("lr-width", overrides)  # any sweep will do: only its ledger is used
    with open_ledger(request, existing=True, remedy="export where the sweep ran") as ledger:
        study, record = find(ledger, run, where=redact_uri(tracking_uri(request.config)))
    files = _files(record, request.files_of(study))
    model, weights = model_of(study, record, files), weights_of(record, files)
    class_name, arguments, state = to_diffusers(model, weights)
    final = files.path / f"diffusers-{record.key[:8]}" if folder is None else user_path(folder, "--folder")
    with _new_folder(final) as temporary:
        parameters = save(temporary, class_name, arguments, state)
    lines = [
        f"run {record.run_id}: {model.family}, width {model.width}, validation loss {record.metric:.4f}",
        f"folder: {final}",
        f"load it with: diffusers.{class_name}.from_pretrained({str(final)!r})",
    ]
    return CommandResult(
        data={"run_id": record.run_id, "class": class_name, "folder": str(final), "parameters": parameters},
        text="\n".join(lines),
    )


def find(ledger: Ledger, run: str, *, where: str) -> tuple[Study, Record]:
    """The one finished run whose id or trial key is `run` or begins with it."""
    runs = [(study, record) for study in ledger.studies() for record in ledger.records(study)]
    matches = [pair for pair in runs if run in _names(pair[1])]
    if run and not matches:
        matches = [pair for pair in runs if any(name and name.startswith(run) for name in _names(pair[1]))]
    if not matches:
        raise BadInput(
            f"no run {run[:64]!r} with a result in the ledger {where}: expected a run id of MLflow or a trial's key, or"
            " the beginning of one; muxfer sweep NAME --dry-run lists the keys"
        )
    if len(matches) > 1:
        shown = [f"{record.run_id} (key {record.key})" for _, record in matches[:MOST_SHOWN]]
        more = [f"{len(matches) - MOST_SHOWN} more"] if len(matches) > MOST_SHOWN else []
        raise BadInput(f"run {run[:64]!r} fits {len(matches)} runs, give one of them: {', '.join([*shown, *more])}")
    [(study, record)] = matches
    if record.outcome is not Outcome.FINISHED:
        raise BadInput(f"run {record.run_id} {record.outcome} at step {record.step}: only a finished one is exported")
    return study, record


def model_of(study: Study, record: Record, files: StudyFolder) -> Model:
    """The model of a run: a proxy's from its study and setting, a target's from its description file."""
    if record.kind == "proxy":
        plain = dict(study.identity["model"])
        for name, value in record.setting.items():
            if (place := place_of(name)) is not None and place[0] == "model":
                plain[place[1]] = value
        return parse_part("model", {"model": plain})
    target = files.target(record.key)
    try:
        description = json.loads(content_of(target.description) or b"")
    except (ValueError, RecursionError) as error:
        raise _not_here(record, target.path) from error
    if not isinstance(description, dict) or not isinstance(description.get("task"), dict):
        raise _not_here(record, target.path)
    return parse_part("model", with_values(description["task"], {}))


def weights_of(record: Record, files: StudyFolder) -> "dict[str, torch.Tensor]":
    """The averaged weights of the last checkpoint, or a target's weight file if its checkpoints were deleted."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from muxfer.training import checkpoint

    folder = files.trial(record.key)
    newest = checkpoint.load_newest(folder, key=record.key)
    if newest is not None and newest.snapshot.step == record.step:
        return dict(newest.snapshot.tensors["ema"])
    if record.kind == "target" and (content := verified_weights(files.target(record.key))) is not None:
        with suppress(SafetensorError):
            return load(content)
    if checkpoint.is_deleted(folder):
        raise BadInput(
            f"the checkpoint of run {record.run_id} was deleted to keep those of better trials within"
            " checkpoints.budget_gb: export a better run"
        )
    raise _not_here(record, folder)


def _files(record: Record, here: StudyFolder) -> StudyFolder:
    """The study's folder: the one here if it has the run, otherwise the one that the driver recorded."""
    if record.checkpoint is None:
        return here
    recorded = Path(record.checkpoint)
    if not recorded.is_absolute() or recorded.parts[-4:-2] != ("trials", record.key):
        raise BadInput(
            f"run {record.run_id} is recorded with checkpoint {record.checkpoint[:60]!r}: expected"
            f" /FOLDER/trials/{record.key}/ATTEMPT/STEP; correct or delete the run in the ledger"
        )
    home = recorded.parents[3]
    is_here = any(map(os.path.isdir, (here.trial(record.key), here.target(record.key).path)))
    return here if is_here or not os.path.isdir(home) else StudyFolder(home)


def _names(record: Record) -> tuple[str | None, str]:
    return record.run_id, record.key


def _not_here(record: Record, path: Path) -> BadInput:
    return BadInput(
        f"the weights of run {record.run_id} are not on this host, or damaged ({path}): export them where they were"
        " trained, or bring the study's folder here"
    )


@contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """Yield a folder that replaces `final` once it is complete. Leftovers are removed. BadInput if the disk refuses."""
    from safetensors import SafetensorError

    try:
        _clean_up(final)
        if final.exists() and not (final.is_dir() and all(EXPORTED.fullmatch(path.name) for path in final.iterdir())):
            raise BadInput(f"{final} exists and is no earlier export: give another, --folder DIR")
        temporary, old = (final.with_name(f".{final.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if final.exists():
            final.rename(old)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{final} can't be written ({reason}): give another, --folder DIR") from error
    finally:
        with suppress(OSError):
            _clean_up(final)


def _clean_up(final: Path) -> None:
    """Remove what earlier exports to `final` left beside it. A finished export that was set aside is put back. A
    leftover belongs to a process that is gone, or to our own pid: in a container pids start from 1 again.
    """
    for leftover in final.parent.glob(f".{glob.escape(final.name)}.*"):
        name = re.fullmatch(r"\.(\d+)\.(tmp|old)", leftover.name[len(final.name) + 1 :], re.ASCII)
        if name is None or leftover.is_symlink() or not (int(name[1]) == os.getpid() or gone(int(name[1]))):
            continue
        if name[2] == "old" and not final.exists():
            leftover.rename(final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
