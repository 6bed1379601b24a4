"""Every model is called with what its forward asks for, and its answer is an image."""

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


class Asked(nn.Module):
    """Keeps what forward was given; returns what `answer` makes of it."""

    def __init__(self, answer=lambda given: given["x"]):
        super().__init__()
        self.answer = answer

    def forward(self, **given):
        self.given = given
        return self.answer(given)


def batch(*, channels=3, height=4, width=6):
    x_BCHW = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    return x_BCHW, torch.tensor([0.0, 500.0, 999.0]), torch.tensor([1, 0, NULL])


def test_every_source_is_given_under_the_models_own_names():
    model = Asked()
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


def test_patches_are_packed_as_flux_packs_its_latents():
    model = Asked(lambda given: given["x"])
    x_BCHW, t_B, y_B = batch()
    back = Conditioning({"x": "patches"}, patch=2, output="patches")(model, x_BCHW, t_B, y_B)
    by_hand = x_BCHW.view(3, 3, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 12)
    assert torch.equal(model.given["x"], by_hand)
    assert torch.equal(back, x_BCHW), "and unpacked again"


def test_patches_of_a_learned_variance_come_behind_those_of_the_prediction():
    x_BCHW, t_B, y_B = batch()
    model = Asked(lambda given: torch.cat([given["x"], -given["x"]], dim=-1))
    out = Conditioning({"x": "patches"}, patch=2, output="patches")(model, x_BCHW, t_B, y_B)
    assert torch.equal(out, torch.cat([x_BCHW, -x_BCHW], dim=1))


@pytest.mark.parametrize(
    "answer",
    [lambda given: given["x"], lambda given: (given["x"], None), lambda given: SimpleNamespace(sample=given["x"])],
    ids=["tensor", "tuple", "sample"],
)
def test_an_output_is_found_in_a_tuple_or_as_sample(answer):
    x_BCHW, t_B, y_B = batch()
    assert Conditioning({"x": "image"}, patch=2)(Asked(answer), x_BCHW, t_B, y_B) is x_BCHW


def test_another_output_is_refused():
    with pytest.raises(BadInput, match=r"the model returned dict: expected a tensor"):
        Conditioning({"x": "image"}, patch=2)(Asked(lambda given: given), *batch())


def test_more_goes_to_forward_and_its_tuple_comes_back():
    model = Asked(lambda given: (given["x"], given["repa"]))
    x_BCHW, t_B, y_B = batch()
    assert Conditioning({"x": "image"}, patch=2)(model, x_BCHW, t_B, y_B, repa=True) == (x_BCHW, True)


def test_text_comes_in_the_images_precision():
    model = Asked()
    x_BCHW, t_B, y_B = batch()
    predict = Conditioning({"x": "image", "text": "text", "pooled": "pooled"}, patch=2, captions=CAPTIONS)
    predict(model, x_BCHW.double(), t_B, y_B)
    assert model.given["text"].dtype == model.given["pooled"].dtype == torch.float64


def test_captions_follow_to_a_device():
    model = Asked()
    predict = Conditioning({"x": "image", "text": "text"}, patch=2, captions=CAPTIONS).to("meta")
    predict(model, *(tensor.to("meta") for tensor in batch()))
    assert model.given["text"].is_meta


class Noisy(nn.Module):
    """Drops half of everything, in evaluation too."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_BCHW, t_B, y_B):
        return F.dropout(self.inner(x_BCHW, t_B, y_B), p=0.5, training=True)


def test_what_a_model_draws_in_its_own_forward_is_the_steps(make_trainer, make_model, tmp_path):
    """Without it a resumed run would part from the uninterrupted one: no generator state is saved."""

    def build():
        return make_trainer(model=Noisy(make_model()), fold={}, steps=20, checkpoint_every=10)

    def save(trainer):
        checkpoint.save(tmp_path / f"at-{trainer.step}" / "attempt-0001-00", trainer.state(), key="k")

    straight = build()
    straight.advance(1e9, save)
    metric = straight.validate()
    for step in (10, 20):
        torch.rand(3)  # another process has drawn other numbers before
        resumed = build()
        resumed.restore(checkpoint.load_newest(tmp_path / f"at-{step}", key="k").snapshot)
        resumed.advance(1e9)
        ours, theirs = resumed.state().tensors["model"], straight.state().tensors["model"]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert resumed.points == straight.points
        assert resumed.validate() == metric


def test_a_model_draws_other_numbers_at_every_step_and_in_every_replicate(make_trainer, make_model):
    drawn = []

    class Drawing(Noisy):
        def forward(self, x_BCHW, t_B, y_B):
            drawn.append(torch.rand(()).item())
            return super().forward(x_BCHW, t_B, y_B)

    for replicate in (0, 1):
        make_trainer(model=Drawing(make_model()), fold={}, steps=6, replicate=replicate).advance(1e9)
    assert len(set(drawn)) == len(drawn) == 12
