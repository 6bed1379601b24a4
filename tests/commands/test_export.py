"""Exported runs are loaded by diffusers: a real ledger, real trials, a real target, the real command."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from muxfer.commands.export import export
from muxfer.errors import BadInput
from muxfer.trial import Record
from proxy_models import FAMILIES
from tests.commands.trained_runs import Trained, exported
from tests.typed import answer, muxfer

pytestmark = pytest.mark.slow

BUILD = {"depth": 2, "head_dim": 16, "patch": 4, "image_size": 8, "channels": 1}


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


def test_diffusers_loads_the_export_and_computes_the_same(trained: Trained) -> None:
    data = answer(trained.folder, "export", trained.dit.key[:12], "--to", "diffusers")
    assert data.pop("wall_seconds") > 0
    model = averaged(trained.dit, width=16, num_classes=10, frequency_shift=1.0)
    # Both blocks of diffusers' class have the embedders, our model has them once.
    copies = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("t_embedder", "y_embedder")))
    assert data == {
        "run_id": trained.dit.run_id,
        "class": "DiTTransformer2DModel",
        "folder": data["folder"],
        "parameters": trained.dit.num_parameters + copies,
    }
    folder = Path(data["folder"])
    assert folder.is_relative_to(trained.folder / "muxfer")
    assert {path.name for path in folder.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert_same_dit(data["folder"], model)
    for path in folder.parent.iterdir():
        assert not path.name.endswith((".tmp", ".old"))


def test_the_text_says_where_the_export_is_and_how_to_load_it(trained: Trained, tmp_path: Path) -> None:
    result = export(trained.dit.run_id or "", [], to="diffusers", folder=str(tmp_path / "here"))
    assert trained.dit.run_id in result.text
    assert f"diffusers.DiTTransformer2DModel.from_pretrained('{tmp_path}/here')" in result.text


def test_a_target_is_exported_with_its_own_width_even_without_its_checkpoints(trained: Trained) -> None:
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
def test_an_exported_caption_model_computes_the_same_in_diffusers(trained: Trained, tmp_path: Path, kind: str) -> None:
    record = trained.pixart if kind == "ours" else trained.declared
    data = exported(record.run_id or "", tmp_path / "pixart")
    assert (data["class"], data["folder"]) == ("PixArtTransformer2DModel", str(tmp_path / "pixart"))
    assert data["parameters"] == record.num_parameters
    loaded = diffusers.PixArtTransformer2DModel.from_pretrained(data["folder"])
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


def test_impossible_exports_are_refused_in_one_line(trained: Trained) -> None:
    refused = {
        "0123abc": "no run '0123abc' with a result in the ledger sqlite:///mlflow.db",
        "": "no run ''",
        "lost": r"fits 2 runs, give one of them: \w+ \(key lost\d\), \w+ \(key lost\d\)",
        "lost1": "are not on this host, or damaged",
        "wrong0": "is recorded with checkpoint 'x': expected /FOLDER/trials/wrong0/ATTEMPT/STEP; correct or delete",
        "wrong1": "is recorded with checkpoint '/x/x",
        "wrong2": "is recorded with checkpoint '/home/trials/lost0",
        trained.diverged.key: f"{trained.diverged.run_id} diverged at step",
        trained.other_timesteps.key: "retrain with model.frequency_shift=1",
    }
    for run, message in refused.items():
        with pytest.raises(BadInput, match=message):
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
    ("arguments", "message"),
    [
        (["export", "lost", "--to", "diffusers"], "fits 2 runs"),
        (["export", "lost", "--to", "difusers"], "diffusers"),
        (["export", "--to", "diffusers"], "RUN"),
    ],
)
def test_a_refusal_is_exit_code_2_and_one_line(trained: Trained, arguments: list[str], message: str) -> None:
    done = muxfer(trained.folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert message in line


def test_a_missing_ledger_is_not_created(empty_folder: Path) -> None:
    with pytest.raises(BadInput, match="no ledger at sqlite:///mlflow.db"):
        exported("0123abc")
    assert list(empty_folder.iterdir()) == []
