"""From a configuration to the class that builds it: registered classes, plain arithmetic, and refusals in one line."""

import importlib.util
import re
import time

import pytest

from muxfer.config.hydra_compose import compose
from muxfer.config.models import with_num_classes
from muxfer.config.parse import parse
from muxfer.errors import BadInput
from muxfer.models.build import scale_plan
from muxfer.models.families import evaluate, family_of
from tests.models.diffusers_tasks import task_of
from tests.refusals import refused


def heads(num_heads, head_dim):
    return {"sizes": {"num_attention_heads": num_heads, "attention_head_dim": head_dim, "num_layers": "depth"}}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
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
        ("dit", heads("4 + 0 * width", 16), "nothing grows between widths 64 and 128"),
        ("dit", heads("4", "width // 4"), "fix the head dim and let the number of heads grow"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(name, changes, message):
    with refused(message) as caught:
        scale_plan(task_of(name, **changes))
    assert len(str(caught.value)) < 400


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="needs a package to be missing")
def test_a_class_with_missing_packages_is_refused_by_their_names():
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
def test_plain_arithmetic_is_evaluated(expression, value):
    result = evaluate(expression, NAMES, "heads")
    assert result == value
    assert type(result) is type(value)


HOSTILE = [
    *("__import__('os').system('true')", "width.__class__", "open('x')", "(lambda: 1)()", "[1][0]", "'a' * 9", "1j"),
    *("width ** 2", "9 ** 9 ** 9 ** 9", "width % 3", "width << 99"),
    *("-width", "not width", "width < 3", "1 if 1 else 2"),
    *("1 / 0", "width // 0.0", "True", "...", "f'{width}'"),
    *("", " ", "width width", "width = 3", "width\0", "width\n; import os", "\ud800", "x := 3", "0x", "1or 2"),
    *("(" * 199, "(" * 10**6, "1" + "+1" * 10**6, "-" * 10**6 + "1", "9" * 10**6, " " * 10**6 + "1"),
]


@pytest.mark.parametrize("expression", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # Python's, of what it parses
def test_other_expressions_are_refused_within_a_second(expression):
    began = time.perf_counter()
    with pytest.raises(BadInput, match=r"^model\.sizes\.heads is .*: expected arithmetic") as caught:
        evaluate(expression, NAMES, "heads")
    assert time.perf_counter() - began < 1
    assert len(str(caught.value)) < 300
    assert not re.search(r"[\0\n]", str(caught.value))


@pytest.mark.parametrize(
    ("expression", "message"),
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
def test_too_large_numbers_and_unknown_names_are_refused(expression, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        evaluate(expression, NAMES, "heads")


def test_a_family_of_ours_is_built_with_its_own_arguments():
    task = parse(compose("lr-width", ["model.depth=1"])).task
    family = family_of(with_num_classes(task.model, 10))
    assert family.build(width=32).x_embedder.proj.weight.shape == (32, 1, 2, 2)
