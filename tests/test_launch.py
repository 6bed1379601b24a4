"""What a target hands out is what was trained, whatever became of its files between the training and the hand-out."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxfer.errors import BadInput
from muxfer.export import handed_out, weights_of
from muxfer.figures import replace_file
from muxfer.inline import InlineExecutor
from muxfer.launch import transfer
from muxfer.plan import grid_trials
from muxfer.progress import Progress
from muxfer.request import Answer, driving, open_ledger, request
from muxfer.study import run_study
from muxfer.task import to_plain
from muxfer.trial import Record

STUDY = [
    "search.width=[16]",
    "search.base_lr=[2**-6]",
    "model.base_width=16",
    "model.depth=1",
    "model.patch=4",
    "training.steps=10",
    "training.warmup_steps=2",
    "training.batch_size=16",
    "training.checkpoint_every=10",
    "evaluation.timesteps=2",
]
TARGET = ["target.width=32", "target.steps=30", "evaluation.sampling_steps=2", "evaluation.samples_per_class=1"]


class Target:
    """A trained target that was handed out: its files, and the command once more."""

    def __init__(self) -> None:
        self.asked = request("lr-width", STUDY)
        self.first = self.again()[0].data
        self.folder = Path(self.first["checkpoint"]).parent
        self.weights = (self.folder / "ema.safetensors").read_bytes()

    def again(self) -> tuple[Answer, str]:
        said: list[str] = []
        answer = transfer("lr-width", [*STUDY, *TARGET], say=said.append, force=True)
        return answer, "\n".join(said)

    def record(self) -> Record:
        with open_ledger(self.asked) as ledger:
            [record] = [record for record in ledger.records(self.asked.study) if record.kind == "target"]
        return record

    def checkpoints(self) -> list[Path]:
        """The averaged weights in each checkpoint, the last one first."""
        found = self.asked.home.glob(f"trials/{self.record().key}/attempt-*/step-*/ema.safetensors")
        return sorted(found, key=lambda path: path.parent.name, reverse=True)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("launch"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        asked = request("lr-width", STUDY)
        with open_ledger(asked) as ledger, driving(asked, asked.study, ledger, to_plain(asked.config)) as lease:
            run_study(
                grid_trials(asked.config, fingerprint=asked.fingerprint),
                [],
                study=asked.study,
                ledger=ledger,
                lease=lease,
                start_executor=InlineExecutor,
                folder=asked.folder,
                progress=Progress(),
            )
        yield Target()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGES = {"flipped": flip, "cut": cut, "missing": Path.unlink}


def test_the_weights_handed_out_are_those_of_the_last_checkpoint(target: Target) -> None:
    assert target.weights == target.checkpoints()[0].read_bytes()
    assert handed_out(target.folder) == target.weights


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_target_damaged_before_it_was_handed_out_goes_on_from_the_checkpoint_before(
    target: Target, damage: str
) -> None:
    shutil.rmtree(target.folder)  # as after a kill between the training and the hand-out
    DAMAGES[damage](target.checkpoints()[0])
    answer, said = target.again()
    assert "the target's checkpoint of step 30 is damaged: it goes on from that of step 20" in said
    assert (target.record().resumed_at, target.record().step) == (20, 30)
    assert (answer.data["run_id"], answer.data["metric"]) == (target.first["run_id"], target.first["metric"])
    assert (target.folder / "ema.safetensors").read_bytes() == target.weights


def test_a_target_of_which_nothing_whole_is_left_is_refused_and_no_file_replaced(target: Target) -> None:
    (target.folder / "target.of").unlink()
    kept = {file: file.read_bytes() for file in target.checkpoints()}
    for file in kept:
        cut(file)
    try:
        with pytest.raises(BadInput, match=r"not on this host, or damaged .* to train it anew"):
            target.again()
        assert (target.folder / "ema.safetensors").read_bytes() == target.weights
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
    target.again()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_that_was_damaged_is_neither_handed_out_nor_exported(target: Target, damage: str) -> None:
    DAMAGES[damage](target.folder / "ema.safetensors")
    trial = target.asked.home / "trials" / target.record().key
    away = trial.rename(target.asked.home / "away")
    try:
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            weights_of(target.record(), target.asked.home)
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            target.again()
    finally:
        away.rename(trial)
    target.again()
    assert (target.folder / "ema.safetensors").read_bytes() == target.weights


def test_a_file_takes_anothers_place_when_the_disk_has_it_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = replace_file(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        replace_file(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
