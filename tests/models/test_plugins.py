"""A module that the command line names, and no other, may bring a class of the user's own."""

import dataclasses
import sys

import pytest

from muxfer.config.models import with_num_classes
from muxfer.errors import BadInput
from muxfer.executors.inline import InlineExecutor
from muxfer.models import plugins
from muxfer.models.build import scale_plan
from muxfer.models.count import measure
from muxfer.models.plugins import Plugins, allow, allowed
from muxfer.trial import Outcome
from tests.refusals import refused
from tests.small_sweeps import job_of
from tests.typed import answer, muxfer

MY_MODELS = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, *, hidden, pixels, classes):
        super().__init__()
        self.inward = nn.Linear(pixels, hidden)
        self.moment = nn.Linear(1, hidden)
        self.label = nn.Embedding(classes + 1, hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.outward = nn.Linear(hidden, pixels)

    def forward(self, pixels, time, label):
        h = self.inward(pixels.flatten(1)) + self.moment(time[:, None] / 1000) + self.label(label)
        h = h + self.middle(torch.relu(h))
        return self.outward(torch.relu(h)).reshape(pixels.shape)


def helper():
    pass
"""

MINE = """
family: declared
target: my_models:Mine
width: 32
base_width: 32
depth: 1
head_dim: 16
patch: 1
image_size: ${data.image_size}
channels: ${data.channels}
sizes: {hidden: width, pixels: channels * image_size * image_size, classes: num_classes}
inputs: {pixels: image, time: timestep, label: labels}
readout: outward.weight
"""

GRID = ["search.width=[32,64]", "search.base_lr=[2**-7,2**-6]"]
SHORT = ["training.steps=20", "training.warmup_steps=2", "training.checkpoint_every=20", "compute.slots=2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a model and its configuration; what a plugin leaves in this process is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_allowed", Plugins())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "my_models.py").write_text(MY_MODELS)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(MINE)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def task(folder, make_config):
    task = make_config("model=mine", "model.width=64", *SHORT).task
    return dataclasses.replace(task, model=with_num_classes(task.model, 10))


def test_a_plugins_class_is_scaled_and_counted(task, folder):
    allow(["my_models"], folder=str(folder))
    assert allowed() == Plugins(names=("my_models",), folder=str(folder))
    roles = {name: scale.role for name, scale in scale_plan(task).scales.items() if name.endswith("weight")}
    assert roles == {
        "inward.weight": "input",
        "moment.weight": "input",
        "label.weight": "input",
        "middle.weight": "hidden",
        "outward.weight": "readout",
    }
    assert measure(task.model).macs == 64 * 64 + 64 + 64 * 64 + 64 * 64


def test_a_module_that_the_command_line_does_not_name_is_not_imported(task, folder):
    (folder / "my_models.py").write_text(f"open({str(folder / 'imported')!r}, 'w')\n")
    with pytest.raises(BadInput, match="'my_models:Mine' is of no registered module.*--plugin package.module"):
        scale_plan(task)
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_models:mine", "is no torch module; did you mean 'Mine'?"),
        ("my_models:helper", "is no torch module; known: Mine"),
        ("my_models:torch", "is no torch module; known: Mine"),
        ("my_models", "is no torch module; known: Mine"),
        ("my_model:Mine", "is of no registered module: did you mean 'my_models'?"),
        ("my_models.deeper:Mine", "is of no registered module: did you mean 'my_models'?"),
    ],
)
def test_a_name_that_is_no_class_of_a_plugin_is_refused(task, folder, target, message):
    allow(["my_models"], folder=str(folder))
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, target=target))
    with refused(message):
        scale_plan(task)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixels": "image", "time": "timestep"}, "model.inputs lacks label, which my_models:Mine's forward needs"),
        ({"pixel": "image", "time": "timestep", "label": "labels"}, "inputs.pixel is no argument.*mean 'pixels'"),
    ],
)
def test_inputs_that_do_not_fit_the_forward_are_refused(task, folder, inputs, message):
    allow(["my_models"], folder=str(folder))
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, inputs=inputs))
    with pytest.raises(BadInput, match=message):
        scale_plan(task)


@pytest.mark.parametrize("signature", ["(self, **anything)", "(self, *, pixels, **anything)"])
def test_a_forward_with_open_keywords_accepts_any_input(task, folder, signature):
    lines = f"\n\nclass Open(Mine):\n    def forward{signature}:\n        return pixels\n"
    (folder / "my_models.py").write_text(MY_MODELS + lines)
    allow(["my_models"], folder=str(folder))
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, target="my_models:Open"))
    assert scale_plan(task).scales["middle.weight"].role == "hidden"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nothing_of_that_name", None, "can't be imported (ModuleNotFoundError: No module named"),
        ("broken", "1 +", "can't be imported (SyntaxError: invalid syntax"),
        ("raising", "raise ValueError('a\\nb')", "can't be imported (ValueError: a); looked in"),
        ("leaving", "import sys; sys.exit(3)", "can't be imported (SystemExit: 3); looked in"),
        ("", None, "--plugin '': expected the name of a Python module"),
        ("my-models", None, "--plugin 'my-models': expected the name of a Python module, package.module"),
        ("../my_models", None, "--plugin '../my_models': expected the name of a Python module"),
        ("my_models:Mine", None, "--plugin 'my_models:Mine': expected the name of a Python module"),
        ("my_models.", None, "--plugin 'my_models.': expected the name of a Python module"),
        ("x" * 10_000 + "-", None, "expected the name of a Python module"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_refused_in_one_line(folder, name, text, message):
    if text is not None:
        (folder / f"{name}.py").write_text(text)
    with refused(message) as caught:
        allow([name], folder=str(folder))
    assert len(str(caught.value)) < 400
    assert allowed() == Plugins(), "what failed is not allowed"


def test_a_job_brings_its_plugins_to_its_process(task, folder, tmp_path):
    job = job_of(task, tmp_path / "trial")
    records = []
    for own in (Plugins(), Plugins(names=("my_models",), folder=str(folder))):
        executor = InlineExecutor()
        executor.submit([dataclasses.replace(job, plugins=own)])
        while not (last := executor.updates(0.0)[-1]).record:
            pass
        records.append(last.record)
    assert [record.outcome for record in records] == [Outcome.FAILED, Outcome.FINISHED]
    assert "is of no registered module" in records[0].error


@pytest.mark.slow
@pytest.mark.alone
def test_a_sweep_of_a_plugins_class_runs_on_ray(folder):
    trials = answer(folder, "sweep", "lr-width", "model=mine", *GRID, *SHORT, "--plugin", "my_models")["trials"]
    assert [(trial["outcome"], trial["step"]) for trial in trials] == [("finished", 20)] * 4
    assert len({trial["metric"] for trial in trials}) == 4
    judged = muxfer(folder, "verdict", "lr-width", "model=mine", *GRID, *SHORT, "--plugin", "my_models")
    assert judged.returncode == 6, judged.stderr
    assert "abstains" in judged.stdout, "two learning rates are too few to say"


@pytest.mark.parametrize("command", [["sweep"], ["sweep", "--dry-run"]])
def test_a_sweep_without_its_plugin_is_refused_in_one_line(folder, command):
    swept = muxfer(folder, *command, "lr-width", "model=mine", *GRID, *SHORT)
    assert (swept.returncode, swept.stdout) == (2, "")
    assert "model.target 'my_models:Mine' is of no registered module" in swept.stderr.splitlines()[-1]
    assert len(swept.stderr.splitlines()) == 1
