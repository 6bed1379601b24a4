"""What a target hands out: averaged weights, lineage, scales and samples."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.files import content_of
from muxfer.report.figures import replace_file
from muxfer.study.resolve import PrintLine
from muxfer.transfer.target import TargetRun
from muxfer.trial import Record, Trial

if TYPE_CHECKING:
    from muxfer.mup import ScalePlan
    from muxfer.training.checkpoint import Snapshot

WEIGHTS = "ema.safetensors"
"""What a target hands out; its SHA-256 stands in the target.json beside it."""


def handed_out(folder: Path) -> bytes | None:
    """The averaged weights that lie in a target's folder, as written; None where they are not, or damaged."""
    content = content_of(folder / WEIGHTS)
    try:
        written = json.loads(content_of(folder / "target.json") or b"")["sha256"][WEIGHTS]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if content is not None and hashlib.sha256(content).hexdigest() == written else None


def is_out(folder: Path, record: Record | None) -> bool:
    """Whether what a target hands out lies there whole, and its run in this very ledger has it too."""
    if record is None or content_of(folder / "target.of") != str(record.run_id).encode():
        return False
    return handed_out(folder) is not None and content_of(folder / "samples.png") is not None


def that_hold(records: Sequence[Record], trial: Trial, checkpoints: Path, print_line: PrintLine) -> Sequence[Record]:
    """The records, but for a finished target's whose last checkpoint is damaged: it goes on from the one before."""
    done = next((record for record in records if record.key == trial.key and record.metric is not None), None)
    if done is None or (step := newest(done, checkpoints).step) == done.step:
        return records
    print_line(f"the target's checkpoint of step {done.step} is damaged: it goes on from that of step {step}")
    return [record for record in records if record is not done]


def newest(record: Record, checkpoints: Path) -> "Snapshot":
    """A finished target as its newest checkpoint that passes its manifest has it; BadInput where none does."""
    from muxfer.training import checkpoint

    found = checkpoint.load_newest(checkpoints, key=record.key)
    if found is None:
        raise BadInput(
            f"the target is trained (run {record.run_id}) but its checkpoints are not on this host, or damaged"
            f" ({checkpoints}): take {WEIGHTS} from the run's artifacts in MLflow, or bring the study's folder here,"
            " or delete the run in MLflow to train it anew"
        )
    return found.snapshot


def write_results(folder: Path, target: TargetRun, trained: "Snapshot", scales: "ScalePlan", task: Task) -> list[Path]:
    """Averaged weights, lineage and plan, and last a picture of samples: what the target hands out."""
    import torch
    from safetensors.torch import save

    from muxfer.data.source import load_dataset
    from muxfer.evaluation.diffusers_sampling import sample, save_grid
    from muxfer.models.build import build_model, conditioning

    content = save(dict(trained.tensors["ema"]))
    weights = replace_file(folder / WEIGHTS, content)
    sums = {WEIGHTS: hashlib.sha256(content).hexdigest()}
    origin = {
        "lineage": dict(target.trial.lineage),
        "task": target.trial.task,
        "plan": scales.to_dict(),
        "sha256": sums,
    }
    about = replace_file(folder / "target.json", json.dumps(origin, indent=2).encode())
    data = load_dataset(task.data)
    model, _ = build_model(task, replicate=0)
    model.load_state_dict(trained.tensors["ema"], strict=False)
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
    temporary = folder / f".samples.png.{os.getpid()}.tmp"  # of a killed command the next one sweeps it
    try:
        content = save_grid(images, labels, temporary, class_names=data.class_names).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{folder} can't be written ({error.strerror or error}): free some space, then run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return [weights, about, replace_file(folder / "samples.png", content)]
