"""The model command lists every parameter as the scale plan has it, and its JSON is enough for another trainer."""

import json
import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from muxfer.commands.model import collapsed, model, with_prefix
from muxfer.config.hydra_compose import compose
from muxfer.config.parse import parse_part
from muxfer.errors import BadInput
from muxfer.models.families import family_of
from muxfer.mup import make_plan, parametrize
from tests.refusals import refused
from tests.typed import command, environment

pytestmark = pytest.mark.usefixtures("empty_folder")


def expanded(name):
    """Every name that a collapsed one stands for."""
    parts = []
    for text in re.split(r"(\{[^}]*\})", name):
        if not text.startswith("{"):
            parts.append([text])
            continue
        runs = [run.split("..") for run in text[1:-1].split(",")]
        parts.append([str(i) for run in runs for i in range(int(run[0]), int(run[-1]) + 1)])
    return ["".join(choice) for choice in product(*parts)]


@pytest.mark.parametrize("name", ["dit", "pixart", "uvit", "mmdit", "in_context", "cross_attention"])
def test_every_parameter_of_every_family_is_listed_with_its_shape(name):
    data = model(name, []).data
    with torch.device("meta"):
        built = family_of(parse_part("model", {"model": _model_config(name)})).build(data["width"])
    shapes = {name: list(parameter.shape) for name, parameter in built.named_parameters()}
    assert {row["name"]: row["shape"] for row in data["parameters"]} == shapes
    assert sum(math.prod(row["shape"]) for row in data["parameters"]) == data["params"]


def _model_config(name):
    config = compose("lr-width", [f"model={name}"])["model"]
    return config | ({"num_classes": 10} if "num_classes" in config and config.get("text_dim") is None else {})


def test_at_the_base_width_nothing_is_scaled():
    for row in model("dit", []).data["parameters"]:
        assert {row[key] for key in ("init_std", "lr", "weight_decay", "eps", "fold")} == {1.0}


def test_at_four_times_the_base_width_the_factors_are_those_of_the_table():
    rows = {row["name"]: row for row in model("dit", ["model.width=256"]).data["parameters"]}
    expected = {
        "x_embedder.proj.weight": ("input", 1, 1, 1, 1 / 4, 1),
        "blocks.0.attn.qkv.weight": ("hidden", 1 / 2, 1 / 4, 4, 1 / 4, 1),
        "final_layer.linear.weight": ("readout", 1 / 4, 1 / 4, 4, 1, 1 / 4),
        "final_layer.linear.bias": ("finite", 1, 1, 1, 1, 1),
    }
    for name, factors in expected.items():
        assert tuple(rows[name][key] for key in ("role", "init_std", "lr", "weight_decay", "eps", "fold")) == factors


def test_a_size_that_does_not_fit_the_data_is_described_without_allocating_its_weights(tmp_path):
    """XL/2 of the DiT paper: 675M parameters, 2.7 GB at 4 bytes, for latents of 32x32x4; the data are 8x8x1."""
    # The peak memory of a process starts at that of its parent. So the command is started by a process that is small.
    launcher = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode;"
    launcher += "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)"
    words = [sys.executable, "-c", launcher, *command("model", "dit", "+size=xl_2", "--json")]
    ran = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    data = json.loads(ran.stdout)
    assert round(data["params"] / 1e6) == 675
    assert round(data["macs"] / 1e9, 1) == 118.6
    assert data["width"] == 4 * data["base_width"] == 1152
    assert 1024 * int(ran.stderr) < 1.5e9


def test_a_model_without_num_classes_takes_it_from_the_data():
    rows = {row["name"]: row["shape"] for row in model("dit", []).data["parameters"]}
    assert rows["y_embedder.embedding_table.weight"] == [11, 64]


def test_a_sweep_has_its_own_model_and_takes_precedence_over_a_model_of_the_same_name(empty_folder):
    assert model("lr-width", ["model.width=128"]).data["width"] == 128
    (empty_folder / "sweeps").mkdir()
    (empty_folder / "sweeps" / "dit.yaml").write_text("defaults: [base, _self_]\nmodel: {depth: 1}\n")
    assert not [row for row in model("dit", []).data["parameters"] if row["name"].startswith("blocks.1.")]


@pytest.mark.parametrize("parametrization", ["mup", "standard"])
def test_a_trainer_that_reads_the_scales_file_draws_the_same_deviations(parametrization):
    overrides = ["model.width=256", f"optimizer.parametrization={parametrization}"]
    result = model("dit", [*overrides, "optimizer.output_multiplier=2"], scales="own/scales.json")
    scales = json.loads(Path("own/scales.json").read_text())
    assert result.data["scales"] == str(Path("own/scales.json").absolute())
    assert scales["hash"] == result.data["plan_hash"]
    assert (scales["parametrization"], scales["base_width"], scales["width"]) == (parametrization, 64, 256)
    build = family_of(parse_part("model", {"model": _model_config("dit")})).build
    readout = scales["readout"]
    plan = make_plan(
        build, width=256, base_width=64, parametrization=parametrization, output_multiplier=2, readout=readout
    )
    torch.manual_seed(0)
    built = build(256)
    parametrize(built, plan)
    rows = {row["name"]: row for row in scales["parameters"]}
    for name, parameter in built.named_parameters():
        slack = 5 * rows[name]["std"] / math.sqrt(2 * parameter.numel())
        assert parameter.std(correction=0).item() == pytest.approx(rows[name]["std"], abs=slack + 1e-12), name
        assert parameter.mean().item() == pytest.approx(rows[name]["mean"], abs=2 * slack + 1e-12), name


@pytest.mark.parametrize(
    ("file", "message"), [("scales.txt", "ends in .json"), ("/proc/nothing/scales.json", "can't be written")]
)
def test_an_impossible_scales_file_is_refused(file, message):
    with pytest.raises(BadInput, match=message):
        model("dit", [], scales=file)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dti", [], "unknown sweep or model 'dti': did you mean 'dit'"),
        ("dit", ["model=mmdit"], "dit is the model already"),
        ("dit", ["model.widht=3"], "did you mean 'model.width'"),
        ("dit", ["model.width=40"], "not divisible by model.head_dim 16; use 32"),
        ("dit", ["optimizer.parametrization=completep"], "give model.base_depth=DEPTH"),
    ],
)
def test_an_impossible_model_is_refused_in_one_line(name, overrides, message):
    with refused(message):
        model(name, overrides)


COMPLETEP = ("optimizer.parametrization=completep", "model.depth=8", "model.base_depth=4")


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize(("name", "more"), [("dit", ()), ("dit", COMPLETEP), ("diffusers_pixart", ())])
def test_the_text_names_every_parameter_once_and_fits_the_terminal(monkeypatch, name, more, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = model(name, ["model.width=128", *more])
    lines = result.text.splitlines()
    assert max(map(len, lines)) <= int(columns)
    shown = [name for line in lines if line.startswith("  ") for name in expanded(line.split()[0])]
    names = [row["name"] for row in result.data["parameters"]]
    assert sorted(name for name in shown if name in names) == sorted(names)
    assert f"{result.data['params']:,}" in result.text


def test_names_of_alike_blocks_are_collapsed():
    names = [f"blocks.{i}.mlp.0.weight" for i in (0, 1, 2, 3, 5, 7, 8)]
    assert collapsed(names) == "blocks.{0..3,5,7,8}.mlp.0.weight"
    assert expanded(collapsed(names)) == names
    assert collapsed(["blocks.0.mlp.0.weight"]) == "blocks.0.mlp.0.weight"


@pytest.mark.parametrize(
    ("number", "text"),
    [(4, "4"), (9999, "9,999"), (10_000, "10.00 k"), (674_834_720, "674.8 M"), (118_621_421_568, "118.6 G")],
)
def test_with_prefix_gives_four_digits_and_a_unit(number, text):
    assert with_prefix(number) == text
