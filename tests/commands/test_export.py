"""What was trained here is loaded by diffusers there: a real ledger, real trials, a real target, the real command."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from muxfer.commands.export import _new_folder, export, find, model_of, weights_of
from muxfer.commands.transfer import transfer
from muxfer.errors import BadInput
from muxfer.executors.inline import InlineExecutor
from muxfer.models.diffusers_weights import save, to_diffusers
from muxfer.study.resolve import resolve
from muxfer.study.session import drive, open_ledger
from muxfer.study.trials import grid_trials
from muxfer.trial import Outcome, Record, Study
from proxy_models import FAMILIES

ROOT = Path(__file__).parents[2]
TINY = [
    "search.width=[16]",
    "search.base_lr=[2**-6]",
    "model.base_width=16",
    "model.depth=2",
    "model.patch=4",
    "training.steps=20",
    "training.warmup_steps=2",
    "training.batch_size=16",
    "training.checkpoint_every=10",
    "training.ema_fraction=0.5",
    "evaluation.timesteps=2",
]
DIT = [*TINY, "model.frequency_shift=1", "search.base_lr=[2**-6,2**60]"]
PIXART = [*TINY, "model=pixart", "model.text_dim=12"]
DECLARED = [*TINY, "model=diffusers_pixart", "model.text_dim=12"]
TARGET = ["target.width=32", "target.steps=30", "evaluation.sampling_steps=2", "evaluation.samples_per_class=1"]
BUILD = {"depth": 2, "head_dim": 16, "patch": 4, "image_size": 8, "channels": 1}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A folder with four studies and a target, and the records of what was trained in it."""

    folder: Path
    dit: Record
    diverged: Record
    pixart: Record
    declared: Record
    other_timesteps: Record
    target: Record


def train(*overrides: str, lost: Mapping[str, str] | None = None) -> dict[Outcome, Record]:
    """The records of a sweep of lr-width, by outcome, trained in this very process.

    The keys `lost` are recorded with a checkpoint that is not on this host.
    """
    asked = resolve("lr-width", overrides)
    with drive(asked) as session:
        trials = grid_trials(asked.config, fingerprint=asked.fingerprint)
        ran = session.run(
            trials,
            start_executor=InlineExecutor,
        )
        finished = next(record for record in ran.records if record.outcome is Outcome.FINISHED)
        for key, checkpoint in (lost or {}).items():
            session.ledger.begin(replace(trials[0], key=key))
            session.ledger.settle(replace(finished, key=key, checkpoint=checkpoint))
        session.ledger.flush(60)
        keys = {trial.key for trial in trials}
        return {record.outcome: record for record in session.records() if record.key in keys}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        lost = {key: f"/elsewhere/study/trials/{key}/attempt/step" for key in ("lost0", "lost1")}
        astray = {"astray0": "x", "astray1": "/" + "x/" * 3000, "astray2": "/home/trials/lost0/attempt/step"}
        dit = train(*DIT, lost={**lost, **astray})
        pixart = train(*PIXART)
        declared = train(*DECLARED)
        other = train(*TINY)
        launched = transfer("lr-width", [*DIT, *TARGET], print_line=print, force=True).data
        asked = resolve("lr-width", DIT)
        with open_ledger(asked) as ledger:
            [target] = [record for record in ledger.records(asked.study) if record.kind == "target"]
        assert launched["run_id"] == target.run_id
        yield Trained(
            folder=folder,
            dit=dit[Outcome.FINISHED],
            diverged=dit[Outcome.DIVERGED],
            pixart=pixart[Outcome.FINISHED],
            declared=declared[Outcome.FINISHED],
            other_timesteps=other[Outcome.FINISHED],
            target=target,
        )


def muxfer(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muxfer", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def exported(run: str, folder: Path | None = None) -> dict[str, Any]:
    return dict(export(run, [], to="diffusers", folder=None if folder is None else str(folder)).data)


def averaged(record: Record, **build: Any) -> torch.nn.Module:
    """Our model with the averaged weights of a record's last checkpoint, which are not those it trained last."""
    weights = load_file(Path(record.checkpoint or "") / "ema.safetensors")
    last = load_file(Path(record.checkpoint or "") / "model.safetensors")
    assert any(not torch.equal(weights[name], last[name]) for name in weights)
    family = "pixart" if "text_dim" in build else "dit"
    model = FAMILIES[family].build(**BUILD, **build).eval()
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def assert_same_dit(folder: str, model: torch.nn.Module) -> None:
    x_BCHW = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t_B, y_B = torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 7, 10])
    loaded = diffusers.DiTTransformer2DModel.from_pretrained(folder)
    expected = model(x_BCHW, t_B, y_B)
    assert expected.std() > 0.01
    torch.testing.assert_close(loaded(x_BCHW, timestep=t_B, class_labels=y_B).sample, expected, rtol=1e-5, atol=1e-5)


def test_the_command_writes_what_diffusers_loads_and_computes_as_we_do(trained: Trained) -> None:
    done = muxfer(trained.folder, "export", trained.dit.key[:12], "--to", "diffusers", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("wall_seconds") > 0
    model = averaged(trained.dit, width=16, num_classes=10, frequency_shift=1.0)
    # Both blocks of diffusers' class have the embedders, our model has them once.
    copies = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("t_embedder", "y_embedder")))
    assert told == {
        "run_id": trained.dit.run_id,
        "class": "DiTTransformer2DModel",
        "folder": told["folder"],
        "parameters": trained.dit.num_parameters + copies,
    }
    folder = Path(told["folder"])
    assert folder.is_relative_to(trained.folder / "muxfer")
    assert {path.name for path in folder.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert_same_dit(told["folder"], model)
    for path in folder.parent.iterdir():
        assert not path.name.endswith((".tmp", ".old"))


def test_a_person_is_told_where_it_is_and_how_to_load_it(trained: Trained, tmp_path: Path) -> None:
    answer = export(trained.dit.run_id or "", [], to="diffusers", folder=str(tmp_path / "here"))
    assert trained.dit.run_id in answer.text
    assert f"diffusers.DiTTransformer2DModel.from_pretrained('{tmp_path}/here')" in answer.text


def test_a_target_is_exported_with_its_own_width_even_after_its_checkpoints_went(trained: Trained) -> None:
    model = averaged(trained.target, width=32, num_classes=10, frequency_shift=1.0)
    checkpoint = Path(trained.target.checkpoint or "")
    moved = checkpoint.rename(trained.folder / "moved")
    try:
        assert_same_dit(exported(trained.target.key)["folder"], model)
    finally:
        moved.rename(checkpoint)
    assert_same_dit(exported(trained.target.key)["folder"], model)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "diffusers' own"])
def test_a_model_on_captions_reads_them_there_as_here(trained: Trained, tmp_path: Path, kind: str) -> None:
    record = trained.pixart if kind == "ours" else trained.declared
    told = exported(record.run_id or "", tmp_path / "pixart")
    assert (told["class"], told["folder"]) == ("PixArtTransformer2DModel", str(tmp_path / "pixart"))
    assert told["parameters"] == record.num_parameters
    loaded = diffusers.PixArtTransformer2DModel.from_pretrained(told["folder"])
    generator = torch.Generator().manual_seed(0)
    x_BCHW, text_BLE = torch.randn(2, 1, 8, 8, generator=generator), torch.randn(2, 4, 12, generator=generator)
    t_B, mask_BL = torch.tensor([10.0, 900.0]), torch.tensor([[True, True, True, True], [True, False, False, False]])
    theirs = {"encoder_hidden_states": text_BLE, "timestep": t_B, "encoder_attention_mask": mask_BL.long()}
    there = loaded(x_BCHW, **theirs).sample
    if kind == "ours":
        expected = averaged(record, width=16, text_dim=12)(x_BCHW, t_B, text_BLE, mask_BL)
    else:
        model = diffusers.PixArtTransformer2DModel(
            num_attention_heads=1,
            attention_head_dim=16,
            cross_attention_dim=16,
            num_layers=2,
            in_channels=1,
            out_channels=1,
            sample_size=8,
            patch_size=4,
            caption_channels=12,
            use_additional_conditions=False,
        ).eval()
        model.load_state_dict(load_file(Path(record.checkpoint or "") / "ema.safetensors"))
        expected = model(x_BCHW, **theirs).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(there, expected, rtol=1e-5, atol=1e-5)


def test_exporting_again_replaces_the_export_and_nothing_else(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(trained.pixart.key, folder)
    told = exported(trained.dit.key, folder)
    assert json.loads((folder / "config.json").read_text())["_class_name"] == told["class"] == "DiTTransformer2DModel"
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
from muxfer.export import _new_folder

with _new_folder(Path(sys.argv[1])) as temporary:
    (temporary / "config.json").write_text("new")
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = lambda self, other: (os.rename(self, other), os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_earlier_export_outlives_one_that_was_killed_and_the_next_leaves_nothing_else(
    tmp_path: Path, when: str
) -> None:
    """Killed before the folders are renamed, and between the two: then the earlier one stands aside."""
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
    assert sorted(tmp_path.iterdir()) == sorted([folder, *others]), "a living export's and somebody else's stay"


def test_a_full_disk_is_told_in_one_line_and_leaves_the_earlier_export(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(trained.dit.key, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    asked = resolve("lr-width", DIT)
    with open_ledger(asked) as ledger:
        study, record = find(ledger, trained.dit.key, where="here")
    written = to_diffusers(model_of(study, record, asked.files.path), weights_of(record, asked.files.path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(BadInput, match="can't be written .*File too large"), _new_folder(folder) as temporary:
            save(temporary, *written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_copy_of_a_folder_is_exported_from_and_into_itself(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger names the original's folder, which is there too, with the trial or without."""
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
def test_what_is_no_file_in_the_place_of_a_targets_is_refused_and_not_waited_for(
    trained: Trained, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    original = Path(trained.target.checkpoint or "").parents[3]
    copied = shutil.copytree(
        original / f"target-{trained.target.key[:8]}", tmp_path / f"target-{trained.target.key[:8]}"
    )
    (copied / name).unlink()
    make(copied / name)
    with pytest.raises(BadInput, match="not on this host, or damaged"):
        weights_of(trained.target, tmp_path)
    if name == "target.json":
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            model_of(Study(name="x", key="x", identity={}), trained.target, tmp_path)


def test_a_ledger_and_its_studies_that_moved_are_exported_from_where_they_are(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder that stays
    moved = trained.folder.with_name("elsewhere")
    trained.folder.rename(moved)
    try:
        monkeypatch.chdir(moved)
        told = exported(trained.dit.key)
        assert Path(told["folder"]).is_relative_to(moved / "muxfer")
        monkeypatch.chdir(tmp_path)
        answer = export(
            trained.dit.key, [f"ledger.tracking_uri=sqlite:///{moved}/mlflow.db"], to="diffusers", folder="d"
        )
        assert answer.data["folder"] == str(tmp_path / "d")
    finally:
        moved.rename(trained.folder)


def test_what_cannot_be_exported_is_refused_in_one_line(trained: Trained) -> None:
    refused = {
        "0123abc": "no run '0123abc' with a result in the ledger sqlite:///mlflow.db",
        "": "no run ''",
        "lost": r"fits 2 runs, say which one: \w+ \(key lost\d\), \w+ \(key lost\d\)",
        "lost1": "are not on this host, or damaged",
        "astray0": "is recorded with checkpoint 'x': expected /FOLDER/trials/astray0/ATTEMPT/STEP; mend or delete",
        "astray1": "is recorded with checkpoint '/x/x",
        "astray2": "is recorded with checkpoint '/home/trials/lost0",
        trained.diverged.key: f"{trained.diverged.run_id} diverged at step",
        trained.other_timesteps.key: "retrain with model.frequency_shift=1",
    }
    for run, told in refused.items():
        with pytest.raises(BadInput, match=told):
            exported(run)
    with pytest.raises(BadInput, match=r"override 'model\.depth=3' has no effect on an export"):
        export(trained.dit.key, ["model.depth=3"], to="diffusers", folder=None)


def test_damaged_weights_are_refused(trained: Trained) -> None:
    file = Path(trained.dit.checkpoint or "") / "ema.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        with pytest.raises(BadInput, match="not on this host, or damaged"):
            exported(trained.dit.key)
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "lost", "--to", "diffusers"], "fits 2 runs"),
        (["export", "lost", "--to", "difusers"], "diffusers"),
        (["export", "--to", "diffusers"], "RUN"),
    ],
)
def test_the_command_refuses_with_2_and_one_line(trained: Trained, arguments: list[str], told: str) -> None:
    done = muxfer(trained.folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert told in line


def test_without_a_ledger_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(BadInput, match="no ledger at sqlite:///mlflow.db"):
        exported("0123abc")
    assert list(tmp_path.iterdir()) == []
