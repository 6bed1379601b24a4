"""Diffusers' classes, unchanged: scaled, counted, trained and resumed."""

from collections import Counter
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.executors.worker import TrialRun
from muxfer.models.build import conditioning, scale_plan
from muxfer.models.count import measure
from muxfer.trial import Outcome
from tests.models.diffusers_tasks import CAPTION, CLASSES, predicted, randomized, task_of
from tests.small_sweeps import job_of, run_attempt

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("dit", {"hidden": 17, "input": 25, "readout": 1, "finite": 1}),
        ("pixart", {"hidden": 23, "input": 32, "readout": 1, "finite": 1}),
        ("sd3", {"hidden": 28, "input": 36, "readout": 1, "finite": 9}),
        ("flux", {"hidden": 55, "input": 63, "readout": 1, "finite": 17}),
    ],
)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_roles_and_initializations_are_found_at_every_width(name, counts, width):
    task = with_setting(task_of(name), {"width": width})
    plan = scale_plan(task)
    assert Counter(scale.role for scale in plan.scales.values()) == counts
    assert plan.scales[plan.readout].role == "readout"
    assert all(plan.base_initializations.values()), (
        "every initialization was recorded: nothing is measured, no base model is built"
    )
    assert {scale.lr for scale in plan.scales.values() if scale.role == "hidden"} == {64 / width}


@pytest.mark.parametrize("name", CLASSES)
def test_depth_scaling_folds_the_branch_ends(name):
    task = task_of(name, base_depth=1)
    folds = {name: scale.fold for name, scale in scale_plan(task).scales.items()}
    patterns = task.model.branch_ends
    ends = {name for name in folds if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert all(any(fnmatchcase(name, pattern) for name in folds) for pattern in patterns)
    assert {name for name, fold in folds.items() if fold == 0.5} == ends


def streams(task: Task, model: nn.Module) -> list[torch.Tensor]:
    """What every block hands on, image and text, and the output."""
    found = []

    def listen(module, given, out):
        found.extend(part for part in (out if isinstance(out, tuple) else (out,)) if part is not None)

    blocks = [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
    handles = [block.register_forward_hook(listen) for block in blocks]
    found.append(predicted(task, model))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_declared_branch_ends_are_all_branch_ends(name):
    """So the declared ends are all there are. Block 0 of DiT holds the embedder that the last layer uses too."""
    task = task_of(name)
    model = randomized(task)
    declared = task.model
    inside, ends = (
        [p for own, p in model.named_parameters() if any(fnmatchcase(own, pattern) for pattern in patterns)]
        for patterns in (declared.branches, declared.branch_ends)
    )
    shared = {id(p) for own, p in model.named_parameters() if own.startswith("transformer_blocks.0.norm1.emb.")}

    def change(parameters):
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.5)

    rest = [p for p in inside if id(p) not in shared | {id(end) for end in ends}]
    before = streams(task, model)
    change(rest)
    assert not any(torch.allclose(*both, rtol=1e-3) for both in zip(before, streams(task, model), strict=True))
    with torch.no_grad():
        for end in ends:
            end.zero_()
    without = streams(task, model)
    change(rest)
    assert all(torch.equal(*both) for both in zip(without, streams(task, model), strict=True))
    assert without[-1].std() > 0.01


def attention_macs(task: Task) -> int:
    model = task.model
    image, text, width = 16, len(CAPTION.split()) + 1, model.width
    return {
        "diffusers:DiTTransformer2DModel": model.depth * 2 * image * image * width,
        "diffusers:PixArtTransformer2DModel": model.depth * 2 * image * (image + text) * width,
        "diffusers:SD3Transformer2DModel": model.depth * 2 * (image + text) ** 2 * width,
        "diffusers:FluxTransformer2DModel": 3 * model.depth * 2 * (image + text) ** 2 * width,
    }[model.target]


@pytest.mark.parametrize("name", CLASSES)
def test_cost_equals_that_of_a_real_forward(name):
    """Counted again by hand: every linear map and convolution of a model that exists, and its attention."""
    task = task_of(name)
    model = randomized(task)
    macs = attention_macs(task)

    def count(module, given, out):
        nonlocal macs
        macs += out[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(count)
    predicted(task, model)
    cost = measure(task.model)
    assert cost.macs == macs
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CLASSES)
def test_learned_variance_doubles_the_output_channels(name):
    for learn_sigma, channels in ((False, 1), (True, 2)):
        task = task_of(name, learn_sigma=learn_sigma)
        assert predicted(task, randomized(task)).shape == (2, channels, 8, 8)


def assert_same(left: TrialRun, right: TrialRun) -> None:
    ours, theirs = left.trainer.state().tensors, right.trainer.state().tensors
    for group in ("model", "ema", "optimizer"):
        assert ours[group].keys() == theirs[group].keys()
        assert all(torch.equal(ours[group][name], theirs[group][name]) for name in theirs[group]), group
    assert left.trainer.points == right.trainer.points


@pytest.mark.parametrize("name", CLASSES)
def test_training_is_repeatable_and_resume_equals_uninterrupted_run(name, tmp_path):
    task = task_of(name, depth=1)
    whole, record, _ = run_attempt(job_of(task, tmp_path / "whole"))
    assert (record.outcome, record.step) == (Outcome.FINISHED, 5)
    losses = [point.value for point in whole.trainer.points if point.name == "train_loss"]
    assert len(losses) == 5
    assert 0 < record.metric < losses[0] < 5
    torch.rand(5)  # what the process drew before is nothing to a trial
    again, _, _ = run_attempt(job_of(task, tmp_path / "again"))
    assert_same(whole, again)
    run_attempt(job_of(task, tmp_path / "stopped"), stop_at=4)
    torch.rand(5)
    resumed, resumed_record, _ = run_attempt(job_of(task, tmp_path / "stopped"))
    assert resumed.resumed_at == 3
    assert_same(whole, resumed)
    assert resumed_record.metric == record.metric


def test_diffusers_dit_drops_labels_itself_in_every_block():
    """What conf/model/diffusers_dit.yaml says of it: one draw a block and one for the output, in training alone."""
    task = task_of("dit")
    model = randomized(task)
    embedders = {own: part for own, part in model.named_modules() if own.endswith("norm1.emb.class_embedder")}
    assert [embedder.dropout_prob for embedder in embedders.values()] == [0.1, 0.1]
    seen = []
    for embedder in embedders.values():
        embedder.embedding_table.register_forward_hook(lambda module, given, out: seen.append(given[0] == 10))
    x_BCHW, labels_B = torch.zeros(500, 1, 8, 8), torch.zeros(500, dtype=torch.long)
    torch.manual_seed(0)
    with torch.no_grad():
        conditioning(task.model, ())(model, x_BCHW, torch.zeros(500), labels_B)
        assert not torch.stack(seen).any()
        seen.clear()
        conditioning(task.model, ())(model.train(), x_BCHW, torch.zeros(500), labels_B)
    dropped = torch.stack(seen).double()
    assert dropped.shape == (3, 500)
    torch.testing.assert_close(dropped.mean(1), torch.full((3,), 0.1, dtype=torch.double), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.corrcoef(dropped), torch.eye(3, dtype=torch.double), atol=0.12, rtol=0)


def test_padding_changes_the_output_only_without_a_mask():
    """It does where none is: the class attends to padding, whose length is the longest caption's."""
    more = (CAPTION, "a caption with many more words than any other has, so that all are padded")
    change = {}
    for name in ("pixart", "sd3", "flux"):
        task = task_of(name)
        model = randomized(task)
        alone, together = predicted(task, model), predicted(task, model, captions=more)
        change[name] = (alone - together).abs().max().item() / alone.std().item()
    assert change["pixart"] < 1e-5
    assert min(change["sd3"], change["flux"]) > 0.05


@pytest.mark.parametrize("name", CLASSES)
def test_the_condition_changes_the_output(name):
    task = task_of(name)
    model = randomized(task)
    captions = (CAPTION, "a scan of the digit one")
    assert not torch.allclose(
        predicted(task, model, captions=captions, labels=(0, 0)),
        predicted(task, model, captions=captions, labels=(1, 1)),
        rtol=1e-2,
    )
