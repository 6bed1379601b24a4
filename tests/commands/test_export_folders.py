"""Where an export reads and writes: earlier exports, killed ones, full disks, copied and moved folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from muxfer.commands.export import _new_folder, export, find, model_of, weights_of
from muxfer.errors import BadInput
from muxfer.files import StudyFolder
from muxfer.models.diffusers_weights import save, to_diffusers
from muxfer.study.resolve import resolve
from muxfer.study.session import open_ledger
from muxfer.trial import Study
from tests.commands.trained_runs import DIT, Trained, exported
from tests.full_disk import full_disk
from tests.typed import ROOT

pytestmark = pytest.mark.slow


def test_a_second_export_replaces_an_export_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(trained.pixart.key, folder)
    data = exported(trained.dit.key, folder)
    assert json.loads((folder / "config.json").read_text())["_class_name"] == data["class"] == "DiTTransformer2DModel"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(BadInput, match="out exists and is no earlier export: give another, --folder DIR"):
        exported(trained.pixart.key, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(BadInput, match="is no earlier export"):
        exported(trained.pixart.key, folder / "notes.txt")
    with pytest.raises(BadInput, match="can't be written"):
        exported(trained.pixart.key, Path("/proc/nothing/out"))


KILLED = """
import os, signal, sys
from pathlib import Path
from muxfer.commands.export import _new_folder

with _new_folder(Path(sys.argv[1])) as temporary:
    (temporary / "config.json").write_text("new")
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = lambda self, other: (os.rename(self, other), os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_export_survives_a_killed_second_one_and_the_third_cleans_up(tmp_path: Path, when: str) -> None:
    """Killed before the folders are renamed, or between the two renames, when the earlier export is set aside."""
    folder = tmp_path / "out [1]"
    folder.mkdir()
    (folder / "config.json").write_text("earlier")
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), when], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert folder.exists() is (when == "before")
    assert len(list(tmp_path.glob(".out*.tmp"))) == 1
    others = [tmp_path / f".out [1].{os.getppid()}.tmp", tmp_path / ".out [1].4194999.other"]
    for other in others:
        other.mkdir()
    with pytest.raises(BadInput, match="disk is full"), _new_folder(folder):
        raise OSError("disk is full")
    assert (folder / "config.json").read_text() == "earlier"
    with _new_folder(folder) as temporary:
        (temporary / "config.json").write_text("newest")
    assert (folder / "config.json").read_text() == "newest"
    assert sorted(tmp_path.iterdir()) == sorted([folder, *others]), (
        "the folders of a running export and of somebody else stay"
    )


def test_a_full_disk_is_reported_in_one_line_and_leaves_the_earlier_export(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(trained.dit.key, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    resolved = resolve("lr-width", DIT)
    with open_ledger(resolved) as ledger:
        study, record = find(ledger, trained.dit.key, where="here")
    written = to_diffusers(model_of(study, record, resolved.files), weights_of(record, resolved.files))
    too_large = pytest.raises(BadInput, match="can't be written .*File too large")
    with full_disk(20_000), too_large, _new_folder(folder) as temporary:
        save(temporary, *written)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copied_folder_is_exported_from_and_into_the_copy(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger names the original folder, which is there too, with or without the trial."""
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    trial = Path(trained.dit.checkpoint or "").parents[1]
    away = trial.rename(trial.with_name("away"))
    monkeypatch.chdir(copy)
    try:
        for run in (trained.dit.key, trained.target.key):
            assert Path(exported(run)["folder"]).is_relative_to(copy)
    finally:
        away.rename(trial)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
@pytest.mark.parametrize("name", ["target.json", "ema.safetensors"])
def test_a_pipe_or_folder_in_place_of_a_target_file_is_refused_at_once(
    trained: Trained, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    original = Path(trained.target.checkpoint or "").parents[3]
    copied = shutil.copytree(
        original / f"target-{trained.target.key[:8]}", tmp_path / f"target-{trained.target.key[:8]}"
    )
    (copied / name).unlink()
    make(copied / name)
    with pytest.raises(BadInput, match="not on this host, or damaged"):
        weights_of(trained.target, StudyFolder(tmp_path))
    if name == "target.json":
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            model_of(Study(name="x", key="x", identity={}), trained.target, StudyFolder(tmp_path))


def test_a_moved_ledger_and_its_studies_are_exported_from_their_new_place(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder that stays
    moved = trained.folder.with_name("elsewhere")
    trained.folder.rename(moved)
    try:
        monkeypatch.chdir(moved)
        data = exported(trained.dit.key)
        assert Path(data["folder"]).is_relative_to(moved / "muxfer")
        monkeypatch.chdir(tmp_path)
        result = export(
            trained.dit.key, [f"ledger.tracking_uri=sqlite:///{moved}/mlflow.db"], to="diffusers", folder="d"
        )
        assert result.data["folder"] == str(tmp_path / "d")
    finally:
        moved.rename(trained.folder)
