"""A target sized by the fit of a recorded isoFLOP study: what the law says, as far as a model can be built."""

import dataclasses
import math

import pytest

from muxfer.errors import BadInput
from muxfer.models.count import measure
from muxfer.study.resolve import resolve
from muxfer.transfer.sizing import sized_target
from tests.small_sweeps import record_study

pytestmark = pytest.mark.slow

ISOFLOP = ["data=digits", "model=dit", "model.depth=1", "model.patch=4", "model.base_width=32", "target.depth=null"]
ISOFLOP += ["search.hp=width", "~search.depth", "search.width_per_depth=null", "search.width=[16,32,48,64,96]"]
ISOFLOP += ["search.flops=[1e11,2e11,4e11,8e11]", "training.batch_size=16"]
TOKENS = 16 * 4


def best_params(flops):
    """The law of the records below: N = 2.5e4 (C / 2.5e11)^0.5."""
    return 2.5e4 * (flops / 2.5e11) ** 0.5


def loss(flops, params):
    off = math.log(params / best_params(flops))
    return (flops / 1e10) ** -0.03 * (1 + 0.02 * off**2) + 1e-5 * math.sin(100 * off)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the ledger of an isoFLOP study whose losses follow a known law."""
    folder = tmp_path_factory.mktemp("isoflop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        record_study("isoflop", ISOFLOP, loss)
    return folder


def test_the_target_has_the_fits_size_and_the_steps_that_its_budget_pays_for(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    asked = resolve("lr-width", ["model.patch=4", "model.depth=1", "training.batch_size=16"])
    law = " ".join(["isoflop", *ISOFLOP])
    flops = 3.2e12
    target, told = sized_target(asked, asked.config.task, flops, law)
    params = measure(dataclasses.replace(asked.config.model, width=target.width)).parameters
    assert params / best_params(flops) == pytest.approx(1, abs=0.25), "widths are multiples of the head dim"
    assert target.steps == pytest.approx(flops / (6 * params * TOKENS), abs=1)
    assert f"width {target.width}, depth 1, {params:,} parameters, {target.steps} steps" in told
    own, _ = sized_target(resolve("isoflop", ISOFLOP), asked.config.task, flops, None)
    assert (own.width, own.steps) == (target.width, target.steps)


@pytest.mark.parametrize(
    ("overrides", "law", "why"),
    [
        (["target.width=64"], "isoflop", "target.width and --flops both say how large the target is"),
        ([], None, "sweep lr-width is no isoFLOP study"),
        ([], "isoflop data=digits", "no study isoflop|no ledger"),
    ],
)
def test_what_cannot_be_sized_is_refused(empty_folder, overrides, law, why):
    asked = resolve("lr-width", overrides)
    with pytest.raises(BadInput, match=why):
        sized_target(asked, asked.config.task, 1e12, law)
