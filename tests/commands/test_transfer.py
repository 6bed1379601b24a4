"""What a target hands out is what was trained, whatever became of its files between the training and the hand-out."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muxfer.commands.export import weights_of
from muxfer.commands.result import CommandResult
from muxfer.commands.transfer import transfer
from muxfer.errors import BadInput, StudyBusy, TrialsFailed
from muxfer.files import TargetFolder, replace_file
from muxfer.study.resolve import resolve
from muxfer.study.session import open_ledger
from muxfer.transfer.outputs import verified_weights
from muxfer.trial import Record
from tests.small_sweeps import TARGET, TINY, run_trials

pytestmark = pytest.mark.slow

STUDY = [*TINY, "training.steps=10", "training.warmup_steps=2", "training.batch_size=16"]
STUDY += ["training.checkpoint_every=10", "evaluation.timesteps=2"]


class Target:
    """A trained target that was handed out: its files, and the command once more."""

    def __init__(self) -> None:
        self.asked = resolve("lr-width", STUDY)
        self.first = self.again()[0].data
        self.folder = Path(self.first["checkpoint"]).parent
        self.weights = (self.folder / "ema.safetensors").read_bytes()

    def again(self) -> tuple[CommandResult, str]:
        said: list[str] = []
        answer = transfer("lr-width", [*STUDY, *TARGET], print_line=said.append, force=True)
        return answer, "\n".join(said)

    def record(self) -> Record:
        with open_ledger(self.asked) as ledger:
            [record] = [record for record in ledger.records(self.asked.study) if record.kind == "target"]
        return record

    def checkpoints(self) -> list[Path]:
        """The averaged weights in each checkpoint, the last one first."""
        found = self.asked.files.path.glob(f"trials/{self.record().key}/attempt-*/step-*/ema.safetensors")
        return sorted(found, key=lambda path: path.parent.name, reverse=True)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("launch"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        run_trials(resolve("lr-width", STUDY))
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
    assert verified_weights(TargetFolder(target.folder)) == target.weights


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
    trial = target.asked.files.path / "trials" / target.record().key
    away = trial.rename(target.asked.files.path / "away")
    try:
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            weights_of(target.record(), target.asked.files)
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            target.again()
    finally:
        away.rename(trial)
    target.again()
    assert (target.folder / "ema.safetensors").read_bytes() == target.weights


@pytest.mark.parametrize("name", ["target.of", "target.json", "ema.safetensors", "samples.png"])
@pytest.mark.parametrize("plant", [Path.unlink, lambda path: (path.unlink(), os.mkfifo(path))], ids=["gone", "a pipe"])
def test_what_is_missing_of_a_target_is_handed_out_again(
    target: Target, name: str, plant: Callable[[Path], None]
) -> None:
    file = target.folder / name
    kept = file.read_bytes()
    plant(file)
    assert target.again()[0].data == target.first
    assert file.read_bytes() == kept


def test_a_pipe_in_the_place_of_a_targets_curve_is_not_waited_for(target: Target) -> None:
    os.mkfifo(curve := target.folder / "target-band.svg")
    try:
        target.again()
    finally:
        curve.unlink()


def test_a_target_that_was_handed_out_to_another_ledger_is_to_this_one_too(target: Target) -> None:
    (target.folder / "target.of").write_text("0" * 32)
    sent = {file: file.stat().st_mtime_ns for file in Path("mlruns").rglob("samples.png")}
    target.again()
    assert (target.folder / "target.of").read_text() == target.first["run_id"]
    again = {file: file.stat().st_mtime_ns for file in Path("mlruns").rglob("samples.png")}
    assert len(sent) == 1
    assert again != sent


def test_a_full_disk_under_a_targets_picture_is_one_line_and_the_next_command_draws_it(target: Target) -> None:
    picture = target.folder / "samples.png"
    kept = picture.read_bytes()
    (target.folder / "target.of").unlink()
    temporary = [target.folder / name for name in (".samples.png", f".samples.png.{os.getpid()}.tmp")]
    for place in temporary:
        place.symlink_to("/dev/full")
    with pytest.raises(BadInput, match="can't be written .No space left on device.: free some space"):
        target.again()
    assert not temporary[1].is_symlink()
    temporary[0].unlink()
    assert picture.read_bytes() == kept
    target.again()
    assert picture.read_bytes() == kept


def test_a_study_that_another_driver_went_on_with_meanwhile_is_chosen_from_anew(empty_folder: Path) -> None:
    study = [*STUDY, "search.base_lr=[2**-6,2**-5]"]
    asked = resolve("lr-width", study)
    run_trials(asked, first=1)
    with pytest.raises(StudyBusy, match="changed while this command waited for it: run the same command again"):
        transfer("lr-width", [*study, *TARGET], print_line=lambda line: run_trials(asked), force=True)
    assert not list(empty_folder.rglob("target-*")), "nothing was launched"
    assert transfer("lr-width", [*study, *TARGET], print_line=print, force=True).data["metric"] is not None


def test_why_a_target_was_halted_is_told_though_its_curve_can_not_be_drawn(empty_folder: Path) -> None:
    study = [*STUDY, "training.steps=40", "training.report_every=2"]
    wrong = [*study, *TARGET, "target.steps=120", "target.base_lr=2**-2"]
    run_trials(resolve("lr-width", study))
    with pytest.raises(TrialsFailed, match="was halted at step .*; its curve: "):
        transfer("lr-width", wrong, print_line=print, force=True)
    [curve] = empty_folder.rglob("target-band.png")
    curve.unlink()
    curve.mkdir()
    with pytest.raises(TrialsFailed, match=r"was halted at step .* with target\.guard=off$"):
        transfer("lr-width", wrong, print_line=print, force=True)


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
