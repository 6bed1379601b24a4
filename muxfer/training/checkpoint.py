"""Checkpoints that survive a kill at any moment, a full disk and flipped bits.

    trial folder / attempt-EPOCH-NN / step-00000050 / model.safetensors, ema.safetensors, optimizer.safetensors,
                                                      state.json, manifest.json (SHA-256 and size of each other file)

A checkpoint is written under a temporary name, made durable, then renamed. So a folder with the final name is whole
unless the disk failed, and its manifest shows that. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from muxfer.errors import BadInput
from muxfer.training.attempt_folders import attempts, numbers_in_name, stored_bytes, subfolders

KEEP = 2  # How many checkpoints of a running trial are kept. If the last one is damaged, the one before is still there.
_STEP = re.compile(r"step-[0-9]+")
_HALF_WRITTEN = re.compile(r"\.step-.*\.tmp")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a run needs to go on: tensors by group ("model", "ema", "optimizer") and name, and plain state."""

    step: int
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    path: Path
    snapshot: Snapshot


class _Invalid(Exception):
    """Why a folder is not a usable checkpoint; never leaves this module."""


def save(attempt_folder: str | Path, snapshot: Snapshot, *, key: str) -> Path:
    """Write a checkpoint of trial `key`, durable when this returns. BadInput when the disk refuses."""
    folder = Path(attempt_folder)
    final = folder / f"step-{snapshot.step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write(temporary, snapshot, key)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2].partition(" (os error")[0]
        raise BadInput(
            f"checkpoint {final} can't be written ({reason}); earlier checkpoints are intact:"
            " free some space or give another folder with output_dir=FOLDER, then run the same command again"
        ) from error
    return final


def load_newest(trial_folder: str | Path, *, key: str) -> Checkpoint | None:
    """The checkpoint of the highest step, over all attempts, that passes its manifest and belongs to trial `key`.
    Unusable checkpoints are skipped, each with a warning in the log. None when no checkpoint is usable.
    """
    for path in _newest_first(_steps(Path(trial_folder))):
        try:
            return Checkpoint(path=path, snapshot=_read(path, key))
        except _Invalid as error:
            logger.warning("checkpoint %s is skipped: %s", path, error)
    return None


def resume_step(trial_folder: str | Path, *, key: str) -> int:
    """The step from which a trial would go on, 0 without a usable checkpoint."""
    newest = load_newest(trial_folder, key=key)
    return 0 if newest is None else newest.snapshot.step


def prune(attempt_folder: str | Path, *, keep: int = KEEP, resumed_from: Path | None = None) -> None:
    """Delete all but the last `keep` whole checkpoints of a running trial, and the remains of broken writes.

    Once this attempt has a checkpoint, those of earlier attempts go too. Only the one that it `resumed_from` stays,
    because it is known to be good, until this attempt has `keep`. Attempts that began later stay untouched. A
    checkpoint is whole here when each file has its manifest's size. `load_newest` validates the hashes too.
    """
    folder = Path(attempt_folder)
    num_kept = 0
    for path in _newest_first(subfolders(folder, _STEP)):
        if num_kept < keep:
            num_kept += _has_all_files(path)
        else:
            _remove(path)
    for path in subfolders(folder, _HALF_WRITTEN):
        shutil.rmtree(path, ignore_errors=True)
    if not num_kept:
        return
    for attempt in (path for path in attempts(folder.parent) if numbers_in_name(path) < numbers_in_name(folder)):
        _empty(attempt, but=resumed_from if num_kept < keep else None)


def keep_newest(trial_folder: str | Path, *, epoch: int) -> int:
    """Delete all but the newest whole checkpoint of a trial that has ended. Returns the bytes that remain. Nothing is
    deleted when a driver of a higher epoch has begun an attempt: it has taken over this driver's lease.
    """
    folder = Path(trial_folder)
    if _taken_over(folder, epoch):
        return stored_bytes(folder)
    newest = next((path for path in _newest_first(_steps(folder)) if _has_all_files(path)), None)
    for attempt in attempts(folder):
        _empty(attempt, but=newest)
    return stored_bytes(folder)


def delete_all(trial_folder: str | Path, *, epoch: int) -> int:
    """Delete a trial's checkpoints. Returns the bytes that remain. `epoch` as in keep_newest. The folder stays."""
    folder = Path(trial_folder)
    if not _taken_over(folder, epoch):
        for attempt in attempts(folder):
            _empty(attempt, but=None)
    return stored_bytes(folder)


def is_deleted(trial_folder: str | Path) -> bool:
    """Whether `delete_all` has deleted the trial's checkpoints."""
    folder = Path(trial_folder)
    return folder.is_dir() and not any(folder.iterdir())


def _newest_first(checkpoints: Iterable[Path]) -> list[Path]:
    return sorted(checkpoints, key=lambda path: (numbers_in_name(path), numbers_in_name(path.parent)), reverse=True)


def _steps(trial_folder: Path) -> list[Path]:
    return [path for attempt in attempts(trial_folder) for path in subfolders(attempt, _STEP)]


def _taken_over(folder: Path, epoch: int) -> bool:
    return any(numbers_in_name(path) >= (epoch + 1,) for path in attempts(folder))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        (path / "manifest.json").unlink()  # first, so that a half-deleted folder is no checkpoint
    shutil.rmtree(path, ignore_errors=True)


def _empty(attempt: Path, *, but: Path | None) -> None:
    """Delete an attempt's checkpoints and unfinished writes, and its folder too when nothing remains in it."""
    for path in (*subfolders(attempt, _STEP), *subfolders(attempt, _HALF_WRITTEN)):
        if path != but:
            _remove(path)
    with contextlib.suppress(OSError):  # not empty
        attempt.rmdir()


def _write(folder: Path, snapshot: Snapshot, key: str) -> None:
    for group, tensors in snapshot.tensors.items():
        dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(dense, folder / f"{group}.safetensors")
    state = {**snapshot.state, "key": key, "step": snapshot.step, "torch": torch.__version__}
    (folder / "state.json").write_text(json.dumps(state, allow_nan=False))
    files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"files": files}, indent=1))
    for path in folder.iterdir():
        _fsync(path)
    _fsync(folder)


def _read(folder: Path, key: str) -> Snapshot:
    files = _manifest(folder)
    for name, expected in files.items():
        try:
            if not (folder / name).is_file():  # reading a pipe or a device might never end
                raise _Invalid(f"{name} is missing, or is no file")
            if (folder / name).stat().st_size != expected["bytes"] or _sha256(folder / name) != expected["sha256"]:
                raise _Invalid(f"{name} has changed since it was written")
        except (OSError, KeyError, TypeError) as error:
            raise _Invalid(f"{name} can't be checked ({error})") from error
    try:
        state = json.loads((folder / "state.json").read_text())
        if state["key"] != key:
            raise _Invalid(f"it belongs to trial {state['key']}, not {key}")
        tensors = {Path(name).stem: load_file(folder / name) for name in files if name.endswith(".safetensors")}
        return Snapshot(step=int(state["step"]), tensors=tensors, state=state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise _Invalid(f"it can't be read ({error})") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        if not (folder / "manifest.json").is_file():
            raise _Invalid("it has no manifest")
        files = dict(json.loads((folder / "manifest.json").read_text())["files"])
        names = set(files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Invalid(f"its manifest can't be read ({error})") from error
    if "state.json" not in names or any(Path(name).name != name for name in names):
        raise _Invalid("its manifest lists files that a checkpoint does not have")
    return files


def _has_all_files(folder: Path) -> bool:
    try:
        return all((folder / name).stat().st_size == file["bytes"] for name, file in _manifest(folder).items())
    except (_Invalid, OSError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
