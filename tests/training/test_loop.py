import math

import pytest
import torch

from muxfer.config.task import DDPM, RectifiedFlow
from muxfer.training import checkpoint
from proxy_models.dit import DiT

FOREVER = 1e9


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stops", [[10], [20], [10, 20]])
def test_resume_equals_uninterrupted_run(make_trainer, make_model, tmp_path, stops):
    straight = make_trainer()
    straight.advance(FOREVER)

    def save(trainer):
        checkpoint.save(tmp_path / f"attempt-0001-{trainer.step:02d}", trainer.state(), key="k")
        if trainer.step in stops:
            raise InterruptedError

    for attempt in range(len(stops)):
        trainer = make_trainer(model=make_model(seed=9 if attempt else 0))
        if attempt:
            trainer.restore(checkpoint.load_newest(tmp_path, key="k").snapshot)
        with pytest.raises(InterruptedError):
            trainer.advance(FOREVER, save)
    resumed = make_trainer(model=make_model(seed=9))
    resumed.restore(checkpoint.load_newest(tmp_path, key="k").snapshot)
    assert resumed.step == stops[-1]
    resumed.advance(FOREVER)

    assert resumed.finished
    left, right = straight.state(), resumed.state()
    for group in ("model", "ema", "optimizer"):
        assert same(left.tensors[group], right.tensors[group]), group
    assert {**left.state, "train_seconds": 0} == {**right.state, "train_seconds": 0}
    assert resumed.validate() == straight.validate()


@pytest.mark.parametrize("objective", [RectifiedFlow(name="rectified_flow"), DDPM(name="ddpm")])
def test_resume_of_a_dit_equals_uninterrupted_run(make_trainer, tmp_path, objective):
    def build():
        torch.manual_seed(0)
        sizes = {"width": 32, "depth": 2, "head_dim": 16, "patch": 2, "image_size": 8, "channels": 1, "num_classes": 10}
        model = DiT(**sizes, learn_sigma=objective.name == "ddpm")
        return make_trainer(model=model, fold={}, objective=objective, steps=12, checkpoint_every=6)

    def save(trainer):
        if trainer.step == 6:
            checkpoint.save(tmp_path / "attempt-0001-00", trainer.state(), key="k")

    straight = build()
    straight.advance(FOREVER, save)
    resumed = build()
    resumed.restore(checkpoint.load_newest(tmp_path, key="k").snapshot)
    resumed.advance(FOREVER)
    for group in ("model", "ema", "optimizer"):
        assert same(straight.state().tensors[group], resumed.state().tensors[group]), group
    assert resumed.points == straight.points
    assert resumed.validate() == straight.validate()


def test_results_do_not_depend_on_how_time_is_divided(make_trainer):
    once, often = make_trainer(), make_trainer()
    once._chunk_steps = 20
    points = once.advance(FOREVER)
    pieces = []
    while not often.finished:
        pieces += often.advance(0.0)
    assert pieces == points == often.points
    assert [point.step for point in points if point.name == "train_loss"] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert same(once.state().tensors["ema"], often.state().tensors["ema"])


def test_a_tiny_run_gives_the_golden_numbers(make_trainer):
    """Other numbers here: the same task now trains differently, so muxfer.trial.NUMERICS_VERSION must go up."""
    trainer = make_trainer(steps=3, warmup_steps=1, report_every=1, ema_fraction=0.7)
    points = {(point.name, point.step): point.value for point in trainer.advance(FOREVER)}
    assert [points["train_loss", step] for step in (1, 2, 3)] == pytest.approx([2.157836, 1.830571, 1.819608], rel=1e-5)
    assert [points["grad_norm", step] for step in (1, 2, 3)] == pytest.approx([0.369705, 0.338900, 0.287527], rel=1e-5)
    assert trainer.validate() == pytest.approx(1.815995, rel=1e-5)


def test_training_lowers_the_validation_loss_of_the_averaged_weights(make_trainer):
    trainer = make_trainer(steps=200)
    before = trainer.validate()
    trainer.advance(FOREVER)
    assert trainer.validate() < 0.8 * before
    assert trainer.train_seconds > 0


def test_validation_restores_the_trained_weights_and_training_mode(make_trainer):
    trainer = make_trainer()
    trainer.advance(FOREVER)
    before = {name: param.clone() for name, param in trainer.model.named_parameters()}
    first, second = trainer.validate(), trainer.validate()
    assert first == second
    assert same(before, dict(trainer.model.named_parameters()))
    assert trainer.model.training
    with trainer.averaged() as model:
        assert not torch.equal(model.readout.weight, before["readout.weight"])


def test_the_averaged_weights_are_the_weighted_mean_of_all_steps(make_trainer):
    trainer, visited = make_trainer(steps=20, ema_fraction=0.2), []
    while not trainer.finished:
        trainer.advance(0.0)
        visited.append(trainer.model.embed.weight.detach().clone())
    shares = torch.tensor([0.75 ** (19 - i) for i in range(20)])
    expected = (torch.stack(visited) * (shares / shares.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(trainer.state().tensors["ema"]["embed.weight"], expected)


def test_the_averaged_weights_of_a_snapshot_fill_another_model(make_trainer, make_model):
    trainer = make_trainer()
    trainer.advance(FOREVER)
    other = make_model(seed=5)
    other.load_state_dict(trainer.state().tensors["ema"])
    x_BCHW, t_B, y_B = torch.randn(2, 1, 8, 8), torch.tensor([5.0, 500.0]), torch.tensor([1, 2])
    with trainer.averaged() as model:
        assert torch.equal(model(x_BCHW, t_B, y_B), other(x_BCHW, t_B, y_B))


class Explode(torch.nn.Module):
    """Outputs its weight times the step's factor. At factor 0 the loss is the mean square of the target."""

    def __init__(self, factors) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.factors, self.step = factors, 0

    def forward(self, x_BCHW, t_B, y_B):
        factor = self.factors[min(self.step, len(self.factors) - 1)]
        self.step += 1
        return torch.ones_like(x_BCHW) * self.weight * factor


@pytest.mark.parametrize("chunk_steps", [1, 20])
@pytest.mark.parametrize("seconds", [0.0, FOREVER])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_loss_that_is_not_finite_is_dated_to_its_step(make_trainer, seconds, bad, chunk_steps):
    """Chunks of 20 steps, as on a GPU: when the losses are read, later steps have been trained too."""
    trainer = make_trainer(model=Explode([0.0] * 7 + [bad]), fold={}, lr=0.0)
    trainer._chunk_steps = chunk_steps
    while trainer.diverged_at is None:
        trainer.advance(seconds)
    assert (trainer.diverged_at, trainer.step, trainer.finished) == (7, 7, False)
    assert all(math.isfinite(point.value) for point in trainer.points)
    assert trainer.advance(seconds) == []


@pytest.mark.parametrize("chunk_steps", [1, 20])
@pytest.mark.parametrize("seconds", [0.0, FOREVER])
def test_a_mean_loss_above_twice_the_first_diverges_after_warm_up(make_trainer, seconds, chunk_steps):
    """From step 1 on, the factor 10 raises the loss far above the first. The first full window is steps 5 to 24."""
    trainer = make_trainer(model=Explode([0.0] + [10.0] * 100), fold={}, lr=0.0, steps=60)
    trainer._chunk_steps = chunk_steps
    while trainer.diverged_at is None:
        trainer.advance(seconds)
    assert trainer.diverged_at == 24


def test_divergence_has_the_same_step_after_a_resume(make_trainer):
    factors = [0.0] * 10 + [10.0] * 100
    trainer = make_trainer(model=Explode(factors), fold={}, lr=0.0, steps=60)
    while trainer.step < 10:
        trainer.advance(0.0)
    resumed = make_trainer(model=Explode(factors[10:]), fold={}, lr=0.0, steps=60)
    resumed.restore(trainer.state())
    trainer.advance(FOREVER)
    resumed.advance(FOREVER)
    assert trainer.diverged_at == resumed.diverged_at == 24


def test_a_short_spike_is_not_divergence(make_trainer):
    trainer = make_trainer(model=Explode([0.0] * 10 + [2.0] * 3 + [0.0] * 100), fold={}, lr=0.0, steps=60)
    trainer.advance(FOREVER)
    assert trainer.finished


def test_a_validation_loss_that_is_not_finite_is_divergence(make_trainer):
    trainer = make_trainer()
    trainer.advance(FOREVER)
    trainer._average.weights[0].fill_(math.nan)
    assert math.isnan(trainer.validate())
    assert trainer.diverged_at == 30
    assert not trainer.finished


def test_a_diverged_run_offers_no_checkpoint(make_trainer):
    offered = []
    trainer = make_trainer(model=Explode([0.0] * 9 + [math.nan]), fold={})
    trainer.advance(FOREVER, lambda at: offered.append(at.step))
    assert (trainer.diverged_at, offered) == (9, [])


def test_checkpoints_are_offered_at_every_interval_and_at_the_end(make_trainer):
    offered = []
    make_trainer(steps=25).advance(FOREVER, lambda at: offered.append(at.step))
    assert offered == [10, 20, 25]


def test_groups_must_hold_every_parameter_once(make_model, make_trainer):
    class Fewer(type(make_model())):
        def named_parameters(self, *args, **kwargs):
            listed = list(super().named_parameters(*args, **kwargs))
            self.calls = getattr(self, "calls", 0) + 1
            return iter(listed[1:] if self.calls == 1 else listed)

    with pytest.raises(ValueError, match=r"embed\.weight"):
        make_trainer(model=Fewer())


def test_a_fold_of_an_unknown_parameter_is_refused(make_trainer):
    with pytest.raises(ValueError, match="nowhere"):
        make_trainer(fold={"nowhere": 2.0})


def test_a_snapshot_of_another_model_is_refused(make_trainer, make_model):
    snapshot = make_trainer(model=make_model(width=32)).state()
    with pytest.raises(ValueError, match="another model"):
        make_trainer().restore(snapshot)


@pytest.mark.parametrize("objective", [RectifiedFlow(name="rectified_flow"), DDPM(name="ddpm")])
def test_bfloat16_training_keeps_weights_in_float32(make_trainer, objective):
    trainer = make_trainer(precision="bfloat16", objective=objective, steps=3)
    trainer.advance(FOREVER)
    assert trainer.finished
    assert {param.dtype for param in trainer.model.parameters()} == {torch.float32}
    assert math.isfinite(trainer.validate())


def test_float64_weights_train_in_float64(make_trainer, make_model):
    trainer = make_trainer(model=make_model().double(), steps=3)
    trainer.advance(FOREVER)
    assert trainer.finished
    assert {value.dtype for value in trainer.state().tensors["ema"].values()} == {torch.float64}


def test_learned_variance_trains(make_trainer, make_model):
    trainer = make_trainer(model=make_model(out=2), objective=DDPM(name="ddpm"), steps=100, lr=3e-3)
    before = trainer.validate()
    trainer.advance(FOREVER)
    assert trainer.finished
    assert trainer.validate() < before
