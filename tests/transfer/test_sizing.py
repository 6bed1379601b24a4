"""A target sized by the fit of a recorded isoFLOP study: what the law says, as far as a model can be built."""

import math

import pytest

from muxfer.commands.sweep import proposing
from muxfer.errors import BadInput
from muxfer.models.count import measure
from muxfer.study.resolve import resolve
from muxfer.study.session import drive
from muxfer.transfer.sizing import sized_target
from muxfer.trial import Outcome, Record

ISOFLOP = [
    "data=digits",
    "model=dit",
    "model.depth=1",
    "model.patch=4",
    "model.base_width=32",
    "search.hp=width",
    "~search.depth",
    "search.width_per_depth=null",
    "search.width=[16,32,48,64,96]",
    "search.flops=[1e11,2e11,4e11,8e11]",
    "training.batch_size=16",
    "target.depth=null",
]
TOKENS = 16 * 4


def best_params(flops):
    """The law of the records below: N = 2.5e4 (C / 2.5e11)^0.5."""
    return 2.5e4 * (flops / 2.5e11) ** 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ledger with an isoFLOP study whose losses follow a known law; nothing is trained."""
    folder = tmp_path_factory.mktemp("isoflop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        asked = resolve("isoflop", ISOFLOP)
        with drive(asked) as session:
            for trial in proposing(asked.config, fingerprint=asked.fingerprint)([]):
                flops = trial.setting["flops"]
                model = asked.config.model.__class__(**{**vars(asked.config.model), "width": trial.setting["width"]})
                params = measure(model).parameters
                off = math.log(params / best_params(flops))
                session.ledger.begin(trial)
                session.ledger.settle(
                    Record(
                        key=trial.key,
                        setting=trial.setting,
                        replicate=0,
                        outcome=Outcome.FINISHED,
                        metric=(flops / 1e10) ** -0.03 * (1 + 0.02 * off**2) + 1e-5 * math.sin(100 * off),
                        step=trial.setting["steps"],
                        epoch=session.lease.epoch,
                        num_parameters=params,
                    )
                )
    return folder


def test_the_target_has_the_fits_size_and_the_steps_that_its_budget_pays_for(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    asked = resolve("lr-width", ["model.patch=4", "model.depth=1", "training.batch_size=16"])
    law = " ".join(["isoflop", *ISOFLOP])
    flops = 3.2e12
    target, told = sized_target(asked, asked.config.task, flops, law)
    model = asked.config.model.__class__(**{**vars(asked.config.model), "width": target.width})
    params = measure(model).parameters
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
def test_what_cannot_be_sized_is_refused(tmp_path, monkeypatch, overrides, law, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    asked = resolve("lr-width", overrides)
    with pytest.raises(BadInput, match=why):
        sized_target(asked, asked.config.task, 1e12, law)
