"""Every model gets the arguments of its forward, and its output becomes an image."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muxfer.config.models import SOURCES
from muxfer.data.captions import embed_captions
from muxfer.errors import BadInput
from muxfer.training import checkpoint
from muxfer.training.conditioning import Conditioning

CAPTIONS = embed_captions(["one", "one two three"], text_dim=8, pooled_dim=4)
NULL = 2


class Recorder(nn.Module):
    """Keeps the arguments of forward, and returns `output` of them."""

    def __init__(self, output=lambda given: given["x"]):
        super().__init__()
        self.output = output

    def forward(self, **given):
        self.given = given
        return self.output(given)


def batch(*, channels=3, height=4, width=6):
    x_BCHW = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0]), torch.tensor([1, 0, NULL])


def test_every_source_is_passed_under_the_models_own_argument_name():
    model = Recorder()
    x_BCHW, t_B, y_B = batch()
    predict = Conditioning({"x": "image"} | {f"my_{source}": source for source in SOURCES}, patch=2, captions=CAPTIONS)
    predict(model, x_BCHW, t_B, y_B)
    given = model.given
    assert given.keys() == {"x"} | {f"my_{source}" for source in SOURCES}
    assert given["my_image"] is x_BCHW
    assert given["my_timestep"] is t_B
    assert given["my_labels"] is y_B
    assert torch.equal(given["my_timestep_unit"], torch.tensor([0.0, 0.5, 0.999]))
    assert torch.equal(given["my_text"], CAPTIONS.text_KLE[[1, 0, 2]])
    assert torch.equal(given["my_text_mask"], CAPTIONS.mask_KL[[1, 0, 2]])
    assert torch.equal(given["my_pooled"], CAPTIONS.pooled_KP[[1, 0, 2]])
    assert torch.equal(given["my_text_ids"], torch.zeros(4, 3))
    rows_and_columns = [[0.0, i, j] for i in range(2) for j in range(3)]
    assert torch.equal(given["my_image_ids"], torch.tensor(rows_and_columns))


def test_patches_are_packed_like_fluxs_latents_and_unpacked_again():
    model = Recorder(lambda given: given["x"])
    x_BCHW, t_B, y_B = batch()
    back = Conditioning({"x": "patches"}, patch=2, output="patches")(model, x_BCHW, t_B, y_B)
    by_hand = x_BCHW.view(3, 3, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 12)
    assert torch.equal(model.given["x"], by_hand)
    assert torch.equal(back, x_BCHW), "and unpacked again"


def test_channels_of_a_learned_variance_follow_those_of_the_prediction():
    x_BCHW, t_B, y_B = batch()
    model = Recorder(lambda given: torch.cat([given["x"], -given["x"]], dim=-1))
    out = Conditioning({"x": "patches"}, patch=2, output="patches")(model, x_BCHW, t_B, y_B)
    assert torch.equal(out, torch.cat([x_BCHW, -x_BCHW], dim=1))


@pytest.mark.parametrize(
    "output",
    [lambda given: given["x"], lambda given: (given["x"], None), lambda given: SimpleNamespace(sample=given["x"])],
    ids=["tensor", "tuple", "sample"],
)
def test_an_output_is_found_in_a_tuple_or_as_sample(output):
    x_BCHW, t_B, y_B = batch()
    assert Conditioning({"x": "image"}, patch=2)(Recorder(output), x_BCHW, t_B, y_B) is x_BCHW


def test_an_output_that_is_no_tensor_is_refused():
    with pytest.raises(BadInput, match=r"the model returned dict: expected a tensor"):
        Conditioning({"x": "image"}, patch=2)(Recorder(lambda given: given), *batch())


def test_extra_arguments_reach_forward_and_its_tuple_is_returned():
    model = Recorder(lambda given: (given["x"], given["repa"]))
    x_BCHW, t_B, y_B = batch()
    assert Conditioning({"x": "image"}, patch=2)(model, x_BCHW, t_B, y_B, repa=True) == (x_BCHW, True)


def test_text_has_the_precision_of_the_images():
    model = Recorder()
    x_BCHW, t_B, y_B = batch()
    predict = Conditioning({"x": "image", "text": "text", "pooled": "pooled"}, patch=2, captions=CAPTIONS)
    predict(model, x_BCHW.double(), t_B, y_B)
    assert model.given["text"].dtype == model.given["pooled"].dtype == torch.float64


def test_captions_move_to_the_device():
    model = Recorder()
    predict = Conditioning({"x": "image", "text": "text"}, patch=2, captions=CAPTIONS).to("meta")
    predict(model, *(tensor.to("meta") for tensor in batch()))
    assert model.given["text"].is_meta


class Noisy(nn.Module):
    """Drops half of the output, in evaluation too."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_BCHW, t_B, y_B):
        return F.dropout(self.inner(x_BCHW, t_B, y_B), p=0.5, training=True)


def test_resume_equals_uninterrupted_run_of_a_model_that_draws_in_forward(make_trainer, make_model, tmp_path):
    """No generator state is saved, so the draws must depend on the step alone."""

    def build():
        return make_trainer(model=Noisy(make_model()), fold={}, steps=20, checkpoint_every=10)

    def save(trainer):
        checkpoint.save(tmp_path / f"at-{trainer.step}" / "attempt-0001-00", trainer.state(), key="k")

    straight = build()
    straight.advance(1e9, save)
    metric = straight.validate()
    for step in (10, 20):
        torch.rand(3)  # another process has drawn other numbers before its resume
        resumed = build()
        resumed.restore(checkpoint.load_newest(tmp_path / f"at-{step}", key="k").snapshot)
        resumed.advance(1e9)
        ours, theirs = resumed.state().tensors["model"], straight.state().tensors["model"]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert resumed.points == straight.points
        assert resumed.validate() == metric


def test_draws_in_forward_differ_between_steps_and_replicates(make_trainer, make_model):
    drawn = []

    class Drawing(Noisy):
        def forward(self, x_BCHW, t_B, y_B):
            drawn.append(torch.rand(()).item())
            return super().forward(x_BCHW, t_B, y_B)

    for replicate in (0, 1):
        make_trainer(model=Drawing(make_model()), fold={}, steps=6, replicate=replicate).advance(1e9)
    assert len(set(drawn)) == len(drawn) == 12
