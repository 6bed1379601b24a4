import errno
import json
import logging
import os

import pytest
import torch

from muxfer.errors import BadInput
from muxfer.training import checkpoint
from muxfer.training.checkpoint import Snapshot, load_newest, prune, save
from tests.full_disk import full_disk


def snapshot(step: int) -> Snapshot:
    values = torch.arange(1000, dtype=torch.float32) + step
    return Snapshot(
        step=step,
        tensors={"model": {"w": values}, "ema": {"w": values / 2}, "optimizer": {"w.exp_avg": -values}},
        state={"points": [["train_loss", step, 0.1]], "recent": [0.1, 1e-300]},
    )


@pytest.fixture
def trial(tmp_path):
    """A trial's folder with checkpoints of two attempts: steps 10 and 20, then 20 and 30."""
    for attempt, steps in ((1, (10, 20)), (2, (20, 30))):
        for step in steps:
            save(tmp_path / f"attempt-{attempt:04d}-00", snapshot(step), key="k")
    return tmp_path


def flip(file, where):
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 1
    file.write_bytes(content)


FILES = ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
DAMAGES = {
    "truncated to nothing": lambda file: os.truncate(file, 0),
    "truncated early": lambda file: os.truncate(file, file.stat().st_size // 100),
    "truncated in the middle": lambda file: os.truncate(file, file.stat().st_size // 2),
    "one byte short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "one byte long": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "a bit flipped at the start": lambda file: flip(file, 0),
    "a bit flipped in the middle": lambda file: flip(file, 0.5),
    "missing": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


def test_the_newest_checkpoint_is_loaded_whole(trial):
    found = load_newest(trial, key="k")
    assert found.path == trial / "attempt-0002-00" / "step-00000030"
    assert found.snapshot.step == 30
    for group, tensors in snapshot(30).tensors.items():
        assert torch.equal(found.snapshot.tensors[group][next(iter(tensors))], next(iter(tensors.values())))
    assert found.snapshot.state["recent"] == [0.1, 1e-300]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(trial, file, damage, caplog):
    DAMAGES[damage](trial / "attempt-0002-00" / "step-00000030" / file)
    with caplog.at_level(logging.WARNING):
        found = load_newest(trial, key="k")
    assert found.snapshot.step == 20
    assert "step-00000030" in caplog.text


def test_an_empty_folder_and_another_trials_checkpoint_are_skipped(trial, caplog):
    save(trial / "attempt-0003-00", snapshot(50), key="another")
    (trial / "attempt-0003-00" / "step-00000040").mkdir()
    assert load_newest(trial, key="k").snapshot.step == 30
    assert "another" in caplog.text


def test_a_manifest_with_a_path_outside_is_refused(trial):
    newest = trial / "attempt-0002-00" / "step-00000030"
    (trial / "outside.json").write_text("{}")
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["../../outside.json"] = {"sha256": checkpoint._sha256(trial / "outside.json"), "bytes": 2}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert load_newest(trial, key="k").snapshot.step == 20


def test_no_usable_checkpoint_gives_none(tmp_path):
    assert load_newest(tmp_path / "missing", key="k") is None


def test_unfinished_writes_are_ignored_and_pruned(trial):
    left = trial / "attempt-0002-00" / ".step-00000040.1.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert load_newest(trial, key="k").snapshot.step == 30
    prune(trial / "attempt-0002-00")
    assert not left.exists()


def test_pruning_keeps_the_last_two_whole_checkpoints(trial):
    folder = trial / "attempt-0002-00"
    for step in (40, 50, 60):
        save(folder, snapshot(step), key="k")
    (folder / "step-00000060" / "ema.safetensors").unlink()
    prune(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000040", "step-00000050", "step-00000060"]
    assert load_newest(trial, key="k").snapshot.step == 50


def test_pruning_deletes_earlier_attempts_once_two_newer_checkpoints_exist(trial):
    """The checkpoint that the attempt resumed from is known to be good. It stays until there are two newer ones."""
    half = trial / "attempt-0001-00" / ".step-00000030.1.tmp"
    half.mkdir()
    resumed_from = load_newest(trial, key="k").path
    prune(trial / "attempt-0003-00", resumed_from=resumed_from)
    assert len(list(trial.glob("attempt-*/step-*"))) == 4
    save(trial / "attempt-0003-00", snapshot(40), key="k")
    (trial / "attempt-0004-00").mkdir()
    prune(trial / "attempt-0003-00", resumed_from=resumed_from)
    assert sorted(path.name for path in trial.iterdir()) == ["attempt-0002-00", "attempt-0003-00", "attempt-0004-00"]
    assert list((trial / "attempt-0002-00").iterdir()) == [resumed_from]
    save(trial / "attempt-0003-00", snapshot(50), key="k")
    prune(trial / "attempt-0003-00", resumed_from=resumed_from)
    assert sorted(path.name for path in trial.iterdir()) == ["attempt-0003-00", "attempt-0004-00"]


@pytest.mark.parametrize(
    ("old", "new"), [("attempt-9999-00", "attempt-10000-00"), ("attempt-0001-99", "attempt-0001-100")]
)
def test_attempts_are_ordered_by_number_not_by_text(tmp_path, old, new):
    for attempt in (old, new):
        save(tmp_path / attempt, snapshot(10), key="k")
    assert load_newest(tmp_path, key="k").path.parent.name == new
    prune(tmp_path / old, keep=1)
    assert (tmp_path / new).exists(), "it began later"
    prune(tmp_path / new, keep=1)
    assert not (tmp_path / old).exists()
    save(tmp_path / old, snapshot(10), key="k")
    checkpoint.keep_newest(tmp_path, epoch=10_000)
    assert [path.name for path in tmp_path.iterdir()] == [new]


def tidy(trial):
    prune(trial / "attempt-0002-00", keep=1)
    checkpoint.keep_newest(trial, epoch=2)
    return checkpoint.delete_all(trial, epoch=2)


@pytest.mark.parametrize(
    "link",
    ["attempt-0000-00", "attempt-9999-00", "attempt-0001-00/step-00000005", "attempt-0001-00/.step-00000005.tmp"],
)
def test_nothing_behind_a_link_is_read_or_deleted(trial, tmp_path_factory, link):
    outside = tmp_path_factory.mktemp("outside")
    save(outside, snapshot(99), key="k")
    for name in ("step-by-step-notes", ".step-1.tmp"):
        (outside / name).mkdir()
        (outside / name / "mine.txt").touch()
    (outside / "manifest.json").write_text("{}")
    there = sorted(outside.rglob("*"))
    (trial / link).symlink_to(outside)
    assert load_newest(trial, key="k").snapshot.step == 30
    tidy(trial)
    assert sorted(outside.rglob("*")) == there
    assert load_newest(trial, key="k") is None, "what is the trial's own goes"


def test_a_trial_that_is_a_link_loses_nothing_and_counts_no_bytes(trial, tmp_path_factory):
    link = tmp_path_factory.mktemp("study") / "k"
    link.symlink_to(trial)
    prune(link / "attempt-0002-00")
    assert checkpoint.keep_newest(link, epoch=2) == checkpoint.delete_all(link, epoch=2) == 0
    assert len(list(trial.glob("attempt-*/step-*"))) == 4


def test_files_named_like_checkpoints_are_ignored(trial):
    names = ["step-00000005", "step-00000040", ".step-00000040.1.tmp"]
    for file in (trial / "attempt-0003-00", *(trial / f"attempt-{i:04d}-00" / name for i in (1, 2) for name in names)):
        file.write_text("mine")
    assert load_newest(trial, key="k").snapshot.step == 30
    assert tidy(trial) == 7 * len("mine")


def test_an_attempt_without_a_whole_checkpoint_prunes_no_earlier_one(trial):
    save(trial / "attempt-0003-00", snapshot(40), key="k")
    (trial / "attempt-0003-00" / "step-00000040" / "state.json").unlink()
    prune(trial / "attempt-0003-00")
    assert load_newest(trial, key="k").snapshot.step == 30


def test_saving_a_step_again_replaces_it(trial):
    save(trial / "attempt-0002-00", snapshot(30), key="k")
    assert load_newest(trial, key="k").snapshot.step == 30


@pytest.mark.parametrize("call", ["save_file", "_fsync", "_sha256"])
def test_a_full_disk_is_one_clear_error_and_keeps_the_old_checkpoint(trial, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, call, full)
    with pytest.raises(BadInput, match=r"No space left on device.*output_dir"):
        save(trial / "attempt-0002-00", snapshot(40), key="k")
    monkeypatch.undo()
    assert sorted(path.name for path in (trial / "attempt-0002-00").iterdir()) == ["step-00000020", "step-00000030"]
    assert load_newest(trial, key="k").snapshot.step == 30


def test_a_write_that_the_kernel_cuts_short_is_the_same_error(trial):
    """The kernel refuses in the middle of a file: no file of this process may grow above 3000 bytes."""
    with full_disk(3000), pytest.raises(BadInput, match="can't be written"):
        save(trial / "attempt-0002-00", snapshot(40), key="k")
    assert sorted(path.name for path in (trial / "attempt-0002-00").iterdir()) == ["step-00000020", "step-00000030"]
    assert load_newest(trial, key="k").snapshot.step == 30


def test_a_state_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "attempt-0001-00", Snapshot(step=1, tensors={}, state={"loss": float("nan")}), key="k")
