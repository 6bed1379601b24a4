"""What a target hands out: averaged weights, their description, and a picture of samples."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.files import TargetFolder, content_of, replace_file
from muxfer.trial import Record, Trial

if TYPE_CHECKING:
    import torch

    from muxfer.mup import ScalePlan
    from muxfer.training.checkpoint import Snapshot


def verified_weights(files: TargetFolder) -> bytes | None:
    """The content of the averaged weights. None where they are missing, or differ from the recorded SHA-256 sum."""
    content = content_of(files.weights)
    try:
        recorded_sum = json.loads(content_of(files.description) or b"")["sha256"][files.weights.name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if content is not None and hashlib.sha256(content).hexdigest() == recorded_sum else None


def is_handed_out(files: TargetFolder, record: Record | None) -> bool:
    """Whether every file is there and whole, and comes from the run that this very ledger has."""
    if record is None or content_of(files.run_id) != str(record.run_id).encode():
        return False
    return verified_weights(files) is not None and content_of(files.samples) is not None


def newest_snapshot(record: Record, checkpoints: Path) -> "Snapshot":
    """A finished target's newest checkpoint that passes its manifest; BadInput where none does."""
    from muxfer.training import checkpoint

    found = checkpoint.load_newest(checkpoints, key=record.key)
    if found is None:
        raise BadInput(
            f"the target is trained (run {record.run_id}) but its checkpoints are not on this host, or damaged"
            f" ({checkpoints}): take ema.safetensors from the run's artifacts in MLflow, or bring the study's folder"
            " here, or delete the run in MLflow to train it anew"
        )
    return found.snapshot


def write_outputs(
    files: TargetFolder, trial: Trial, trained: "Snapshot", scales: "ScalePlan", task: Task
) -> list[Path]:
    """Write weights, description and samples. `trial` is described with names of variables, `task` has values."""
    from safetensors.torch import save

    ema = trained.tensors["ema"]
    content = save(dict(ema))
    weights = replace_file(files.weights, content)
    description = {
        "lineage": dict(trial.lineage),
        "task": trial.task,
        "plan": scales.to_dict(),
        "sha256": {weights.name: hashlib.sha256(content).hexdigest()},
    }
    described = replace_file(files.description, json.dumps(description, indent=2).encode())
    return [weights, described, replace_file(files.samples, _samples_png(files, task, dict(ema)))]


def _samples_png(files: TargetFolder, task: Task, weights: "dict[str, torch.Tensor]") -> bytes:
    """A grid of samples of every class, drawn with the averaged weights."""
    import torch

    from muxfer.data.source import load_dataset
    from muxfer.evaluation.diffusers_sampling import sample, save_grid
    from muxfer.models.build import build_model, conditioning

    data = load_dataset(task.data)
    model, _ = build_model(task, replicate=0)
    model.load_state_dict(weights, strict=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labels = [label for label in range(data.num_classes) for _ in range(task.evaluation.samples_per_class)]
    predict = conditioning(task.model, data.captions).to(device)
    images = sample(
        functools.partial(predict, model.eval().to(device)),
        objective=task.objective,
        evaluation=task.evaluation,
        labels=labels,
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        seed=task.training.seed,
        learn_sigma=task.model.learn_sigma,
        device=device,
    )
    temporary = files.path / f".samples.png.{os.getpid()}.tmp"  # the next command removes that of a killed one
    try:
        return save_grid(images, labels, temporary, class_names=data.class_names).read_bytes()
    except OSError as error:
        why = f"{files.path} can't be written ({error.strerror or error})"
        raise BadInput(f"{why}: free some space, then run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)
