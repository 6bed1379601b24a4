"""Counts a model's parameters and multiply-accumulates, and tries its forward, all on the meta device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from muxfer.config.models import Declared, Model
from muxfer.config.study import Config
from muxfer.config.task import to_plain
from muxfer.data.source import describe_data
from muxfer.errors import BadInput
from muxfer.models.build import EXAMPLE_CAPTIONS, conditioning
from muxfer.models.families import family_of
from muxfer.mup.forward_check import refuse_changing_forward
from muxfer.trial import content_hash


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Parameters of a model, and multiply-accumulates of one sample's forward pass, attention included."""

    parameters: int
    macs: int


Measure = Callable[[Model], ModelCost]
_counted: dict[str, ModelCost] = {}


def counter(config: Config) -> Measure:
    """`measure` for the captions of the configured data. A process counts each model once."""
    captions = describe_data(config.data).captions

    def count(model: Model) -> ModelCost:
        key = content_hash([to_plain(model), captions])
        if key not in _counted:
            _counted[key] = measure(model, captions)
        return _counted[key]

    return count


def validate_forward(model: Model) -> None:
    """Refuse a declared class whose forward fails, returns no image, or uses a number that changes with the width. The
    forward runs on the meta device, at the base width and at twice that. Our own families are covered by tests.
    """
    if not isinstance(model, Declared):
        return

    def prepare(width: int) -> Callable[[], None]:
        with torch.device("meta"):
            built = family_of(model).build(width).eval()
            image = torch.empty(1, model.channels, model.image_size, model.image_size)
            inputs = (image, torch.empty(1), torch.zeros(1, dtype=torch.long))
        predict = conditioning(model, EXAMPLE_CAPTIONS).to("meta")
        return partial(_validate_output, model, partial(predict, built, *inputs), width)

    refuse_changing_forward(prepare, width=model.base_width, other_width=2 * model.base_width)


def _validate_output(model: Declared, forward: Callable[[], Any], width: int) -> None:
    """Run the forward once. Refuse it where it fails or its output is not one image of the expected shape."""
    try:
        with torch.device("meta"):
            out = forward()
    except BadInput:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise BadInput(
            f"{model.target}: its forward failed at width {width} ({reason[:200]}); see model.inputs, model.sizes and"
            " model.arguments"
        ) from error
    expected = [1, (2 if model.learn_sigma else 1) * model.channels, model.image_size, model.image_size]
    given = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
    if given != expected:
        raise BadInput(
            f"{model.target}: its forward returns {given} for one image, expected {expected}; see model.output,"
            " model.patch and model.learn_sigma"
        )


def measure(model: Model, captions: Sequence[str] = EXAMPLE_CAPTIONS) -> ModelCost:
    """Count on the meta device, which takes no memory whatever the size. Text is as long as the longest caption."""
    with torch.device("meta"), torch.no_grad():
        built = family_of(model).build(model.width).eval()
        predict = conditioning(model, captions)
        image = torch.empty(1, model.channels, model.image_size, model.image_size)
        with FlopCounterMode(display=False) as counter:
            predict.to("meta")(built, image, torch.empty(1), torch.zeros(1, dtype=torch.long))
    parameters = sum(parameter.numel() for parameter in built.parameters())
    return ModelCost(parameters=parameters, macs=counter.get_total_flops() // 2)
