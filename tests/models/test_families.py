"""Classes of diffusers, as they are, through the configuration: scaled, counted, trained, resumed, or refused."""

import copy
import dataclasses
import functools
import importlib.util
import re
import time
from collections import Counter
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.source import load_dataset
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.models.build import build_model, conditioning, scale_plan
from muxfer.models.count import measure
from muxfer.models.families import evaluate, family_of
from muxfer.study.trials import make_trial
from muxfer.trial import Outcome

torch.set_num_threads(1)

CLASSES = ("dit", "pixart", "sd3", "flux")
CAPTION = "a scan of the digit seven"
SHORT = {"steps": 5, "batch_size": 16, "warmup_steps": 1, "checkpoint_every": 3, "report_every": 1}


@functools.cache
def composed(name):
    return compose("lr-width", [f"model=diffusers_{name}", "model.depth=2"])


def task_of(name, **changes) -> Task:
    """The task of conf/model/diffusers_NAME.yaml on digits; `changes` are keys of the model."""
    plain = copy.deepcopy(composed(name))
    plain["model"] |= changes
    plain["training"] |= SHORT
    plain["evaluation"]["timesteps"] = 1
    if "base_depth" in changes:
        plain["optimizer"]["parametrization"] = "completep"
    if changes.get("learn_sigma"):
        plain["objective"] = compose("lr-width", ["objective=ddpm"])["objective"]
    task = parse(plain).task
    return dataclasses.replace(task, model=with_num_classes(task.model, 10))


def randomized(task: Task) -> nn.Module:
    model, _ = build_model(task, replicate=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def predicted(task: Task, model: nn.Module, *, captions=(CAPTION,), labels=(0, 0)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(len(labels), 1, 8, 8, generator=generator)
    with torch.no_grad():
        return conditioning(task.model, captions)(model, x_BCHW, torch.tensor([10.0, 800.0]), torch.tensor(labels))


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
def test_roles_and_laws_are_found_at_every_width(name, counts, width):
    task = with_setting(task_of(name), {"width": width})
    plan = scale_plan(task)
    assert Counter(scale.role for scale in plan.scales.values()) == counts
    assert plan.scales[plan.readout].role == "readout"
    assert all(plan.base_initializations.values()), (
        "every law was recorded: nothing is measured, no base model is built"
    )
    assert {scale.lr for scale in plan.scales.values() if scale.role == "hidden"} == {64 / width}


@pytest.mark.parametrize("name", CLASSES)
def test_depth_scaling_finds_branches_and_their_ends(name):
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
def test_without_its_branch_ends_no_branch_changes_a_stream(name):
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
def test_cost_on_the_meta_device_is_that_of_a_real_forward(name):
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


def job_of(task: Task, folder) -> TrialJob:
    data = load_dataset(task.data)
    return TrialJob(trial=make_trial(task, {}, replicate=0, fingerprint=data.fingerprint), folder=str(folder), epoch=1)


def run(job, *, stop_at=None):
    trial_run = TrialRun(job)
    while True:
        report = trial_run.advance(0.0)
        if report.record is not None or trial_run.trainer.step == stop_at:
            return trial_run, report.record


def assert_same(left: TrialRun, right: TrialRun) -> None:
    ours, theirs = left.trainer.state().tensors, right.trainer.state().tensors
    for group in ("model", "ema", "optimizer"):
        assert ours[group].keys() == theirs[group].keys()
        assert all(torch.equal(ours[group][name], theirs[group][name]) for name in theirs[group]), group
    assert left.trainer.points == right.trainer.points


@pytest.mark.parametrize("name", CLASSES)
def test_it_trains_on_digits_and_twice_alike_and_resumed_as_if_never_stopped(name, tmp_path):
    task = task_of(name, depth=1)
    whole, record = run(job_of(task, tmp_path / "whole"))
    assert (record.outcome, record.step) == (Outcome.FINISHED, 5)
    losses = [point.value for point in whole.trainer.points if point.name == "train_loss"]
    assert len(losses) == 5
    assert 0 < record.metric < losses[0] < 5
    torch.rand(5)  # what the process drew before is nothing to a trial
    again, _ = run(job_of(task, tmp_path / "again"))
    assert_same(whole, again)
    run(job_of(task, tmp_path / "stopped"), stop_at=4)
    torch.rand(5)
    resumed, resumed_record = run(job_of(task, tmp_path / "stopped"))
    assert resumed.resumed_at == 3
    assert_same(whole, resumed)
    assert resumed_record.metric == record.metric


def test_diffusers_dit_drops_labels_on_its_own_in_every_block():
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


def test_a_longer_caption_elsewhere_changes_nothing_where_a_mask_is_used():
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
def test_the_condition_reaches_the_output(name):
    task = task_of(name)
    model = randomized(task)
    captions = (CAPTION, "a scan of the digit one")
    assert not torch.allclose(
        predicted(task, model, captions=captions, labels=(0, 0)),
        predicted(task, model, captions=captions, labels=(1, 1)),
        rtol=1e-2,
    )


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("dit", {"target": "os:system"}, "model.target 'os:system' is of no registered module: known: diffusers"),
        ("dit", {"target": "torch.nn:Linear"}, "with --plugin package.module on the command line"),
        ("dit", {"target": "difusers:DiTTransformer2DModel"}, "did you mean 'diffusers'"),
        ("dit", {"target": "diffusers"}, "'diffusers' is no torch module"),
        ("dit", {"target": "diffusers:DDIMScheduler"}, "'diffusers:DDIMScheduler' is no torch module"),
        ("dit", {"target": "diffusers:DitTransformer2dModel"}, "did you mean 'DiTTransformer2DModel'"),
        ("dit", {"target": "diffusers:utils.logging"}, "is no torch module"),
        ("dit", {"target": "diffusers:" + "x" * 10_000}, "is no torch module; diffusers has"),
        ("dit", {"sizes": {"num_layers": "depth"}}, "model.sizes has no argument that follows from width"),
        ("dit", {"sizes": {"num_attention_heads": "base_width // 16"}}, "no argument that follows from width"),
        ("dit", {"sizes": {"num_attention_heads": "widht // width"}}, "model.depth has no effect: name it under"),
        ("pixart", {"mlp_ratio": 2.0}, "model.mlp_ratio has no effect: name it under model.sizes, or set it to 4.0"),
        ("pixart", {"sizes": {"a": "widht // head_dim", "b": "width * depth"}}, "names 'widht': did you mean 'width'"),
        ("dit", {"sizes": {"a": "width // heads", "b": "depth"}}, "model.sizes.a names 'heads': "),
        ("dit", {"sizes": {"a": "width", "b": "depth", "c": "pooled_dim"}}, "give model.pooled_dim"),
        ("dit", {"sizes": {"a": "width", "b": "depth", "c": None}}, "model.sizes.c is None: expected text or a whole"),
        ("dit", {"arguments": {"num_layers": 2}}, "model.sizes.num_layers and model.arguments.num_layers are both"),
        ("dit", {"arguments": {"norm_eps": float("nan")}}, "model.arguments.norm_eps is nan: expected finite numbers"),
        ("dit", {"arguments": {"a": [1, {2: 3}]}}, "model.arguments.a.1 is {2: 3}: expected finite numbers"),
        ("dit", {"arguments": {"no name": 1}}, "'no name': expected the name of an argument"),
        ("dit", {"arguments": {"haeds": 2}}, "unexpected keyword argument 'haeds'; see model.sizes and model.arg"),
        ("dit", {"arguments": {"norm_type": "rms"}}, "can't be built at width 64: Forward pass is not implemented"),
        ("dit", {"inputs": {"hidden_states": "picture"}}, "model.inputs.hidden_states is 'picture': expected one of"),
        ("dit", {"inputs": {"class_labels": "labels"}}, "model.inputs has neither image nor patches"),
        ("dit", {"inputs": {"hidden_state": "image"}}, "forward: did you mean 'hidden_states'?"),
        ("dit", {"inputs": {"timestep": "timestep", "cross_attention_kwargs": "image"}}, "lacks hidden_states, which"),
        ("dit", {"inputs": {"hidden_states": "text"}}, "model.inputs uses text: give model.text_dim"),
        ("dit", {"inputs": {"hidden_states": "pooled"}}, "model.inputs uses pooled: give model.pooled_dim"),
        ("flux", {"text_dim": None}, "model.inputs uses text: give model.text_dim"),
        ("dit", {"readout": "proj_out.weight"}, "readout 'proj_out.weight' is no parameter of the model"),
        (
            "dit",
            {"sizes": {"num_attention_heads": "4 + 0 * width", "attention_head_dim": 16, "num_layers": "depth"}},
            "nothing grows between widths 64 and 128",
        ),
        (
            "dit",
            {"sizes": {"num_attention_heads": "4", "attention_head_dim": "width // 4", "num_layers": "depth"}},
            "fix the head dim and let the number of heads grow",
        ),
    ],
)
def test_what_can_not_work_is_refused_in_one_line(name, changes, told):
    with pytest.raises(BadInput) as refused:
        scale_plan(task_of(name, **changes))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="needs a package to be missing")
def test_a_class_whose_packages_are_missing_says_which():
    with pytest.raises(BadInput, match=r"OnnxRuntimeModel' needs packages that are not all here: onnx$"):
        scale_plan(task_of("dit", target="diffusers:OnnxRuntimeModel"))


NAMES = {"width": 64, "head_dim": 16, "mlp_ratio": 2.5, "learn_sigma": True, "num_classes": None}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("width // head_dim", 4),
        ("width / head_dim", 4),
        ("mlp_ratio * width", 160),
        ("mlp_ratio", 2.5),
        ("3 * (1 + learn_sigma)", 6),
        ("(width - 4) // 7 + 0.5", 8.5),
        ("17", 17),
        (17, 17),
    ],
)
def test_sizes_are_plain_arithmetic(expression, value):
    result = evaluate(expression, NAMES, "heads")
    assert result == value
    assert type(result) is type(value)


HOSTILE = [
    *("__import__('os').system('true')", "width.__class__", "open('x')", "(lambda: 1)()", "[1][0]", "'a' * 9", "1j"),
    *(
        "width ** 2",
        "9 ** 9 ** 9 ** 9",
        "width % 3",
        "width << 99",
        "-width",
        "not width",
        "width < 3",
        "1 if 1 else 2",
    ),
    *("1 / 0", "width // 0.0", "True", "...", "f'{width}'"),
    *("", " ", "width width", "width = 3", "width\0", "width\n; import os", "\ud800", "x := 3", "0x", "1or 2"),
    *("(" * 199, "(" * 10**6, "1" + "+1" * 10**6, "-" * 10**6 + "1", "9" * 10**6, " " * 10**6 + "1"),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # Python's, of what it parses
def test_anything_else_is_refused_at_once(expression):
    began = time.perf_counter()
    with pytest.raises(BadInput, match=r"^model\.sizes\.heads is .*: expected arithmetic") as refused:
        evaluate(expression, NAMES, "heads")
    assert time.perf_counter() - began < 1
    assert len(str(refused.value)) < 300
    assert not re.search(r"[\0\n]", str(refused.value))


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("width * 1000000000", "comes to 6.4e+10: expected a number below 2^31"),
        ("1e308 * 10", "comes to inf: expected a number below"),
        ("0 * 1e999", "comes to nan: expected a number below"),
        (f"{'9' * 150} * 9", "comes to 9e+150: expected a number below"),
        (f"1 - {'9' * 150}", "comes to -1e+150: expected a number below"),
        ("widths // 2", "names 'widths': did you mean 'width'?"),
        ("num_classes + 1", "names num_classes, which has no value: give model.num_classes"),
    ],
)
def test_a_number_or_a_name_that_can_not_be_is_refused(expression, told):
    with pytest.raises(BadInput, match=re.escape(told)):
        evaluate(expression, NAMES, "heads")


def test_a_family_of_ours_is_built_with_its_own_arguments():
    task = parse(compose("lr-width", ["model.depth=1"])).task
    family = family_of(with_num_classes(task.model, 10))
    assert family.build(width=32).x_embedder.proj.weight.shape == (32, 1, 2, 2)
