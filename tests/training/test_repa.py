"""REPA: what the alignment with frozen features does to a training run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muxfer.config.study import Config
from muxfer.config.task import RectifiedFlow, Task
from muxfer.data.dataset import Dataset
from muxfer.errors import BadInput
from muxfer.models.build import build_model, conditioning, repa_features
from muxfer.mup import fold_factors, param_groups
from muxfer.training.loop import Trainer
from tests.small_sweeps import job_of, run_attempt

FOREVER = 1e9

TINY = ["model=mmdit", "model.width=32", "model.base_width=32", "model.depth=2", "model.text_dim=8"]
TINY += ["training.steps=30", "training.batch_size=32", "training.warmup_steps=3", "training.checkpoint_every=30"]
TINY += ["search.width=[32]", "search.base_lr=[2**-7]", "model.pooled_dim=8", "evaluation.timesteps=2"]
ALIGNED = ("model.repa_depth=1", "model.repa_dim=8", "++objective.repa_weight=0.5")

MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(make_config: Callable[..., Config]) -> MakeTask:
    """`make_task(*ALIGNED)`: a small MMDiT on the digits."""
    return lambda *overrides: make_config(*TINY, *overrides).task


def trainer_of(task: Task, digits: Dataset, *, aligned: bool = True) -> Trainer:
    """A trainer as in a trial. Without `aligned` it gets no features, whatever the model."""
    model, plan = build_model(task, replicate=0)
    optimizer = task.optimizer
    betas = (optimizer.beta1, optimizer.beta2)
    groups = param_groups(model, plan, base_lr=optimizer.base_lr, weight_decay=0.1, eps=optimizer.eps, betas=betas)
    return Trainer(
        model,
        groups,
        objective=task.objective,
        data=digits,
        training=task.training,
        evaluation=task.evaluation,
        replicate=0,
        fold=fold_factors(plan),
        predict=conditioning(task.model, digits.captions),
        features_NTE=repa_features(task, digits) if aligned else None,
        grad_clip=optimizer.grad_clip,
    )


def misalignment(trainer: Trainer, task: Task, digits: Dataset) -> float:
    """The REPA term of the first pictures at half noise, from the model's own projection."""
    num_pictures = 128
    x_BCHW = digits.train.images(slice(num_pictures))
    noise_BCHW = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(0))
    predict = conditioning(task.model, digits.captions)
    y_B = digits.train.labels_N[:num_pictures]
    with torch.no_grad():
        x_BCHW = (x_BCHW + noise_BCHW) / 2
        _, projection_BTE = predict(trainer.model, x_BCHW, torch.full((num_pictures,), 500.0), y_B, repa=True)
    features_NTE = repa_features(task, digits)
    assert features_NTE is not None
    return (1 - F.cosine_similarity(projection_BTE, features_NTE[:num_pictures], dim=-1)).mean().item()


def test_a_task_has_features_only_when_its_loss_has_a_weight(make_task: MakeTask, digits: Dataset) -> None:
    assert repa_features(make_task(), digits) is None
    features_NTE = repa_features(make_task(*ALIGNED), digits)
    assert features_NTE is not None
    assert features_NTE.shape == (len(digits.train), 16, 8)


@pytest.mark.parametrize("half", [ALIGNED[:2], ALIGNED[2:]])
def test_a_projector_and_a_weight_are_refused_without_each_other(make_task: MakeTask, half: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match=r"repa_depth|repa_weight"):
        make_task(*half)


def test_training_aligns_the_pictures_and_learns_to_denoise(make_task: MakeTask, digits: Dataset) -> None:
    task = make_task(*ALIGNED)
    trainer = trainer_of(task, digits)
    before, loss_before = misalignment(trainer, task, digits), trainer.validate()
    trainer.advance(FOREVER)
    assert before == pytest.approx(1, abs=0.15), "at first the projection is random"
    assert misalignment(trainer, task, digits) < 0.75 * before
    assert trainer.validate() < loss_before
    without_repa = trainer_of(task, digits, aligned=False)
    without_repa.advance(FOREVER)
    assert misalignment(without_repa, task, digits) > 0.9 * before, "denoising alone does not align"


class Mirror(nn.Module):
    """Its projection is the picture itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, y_B: torch.Tensor, repa: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        output = x_BCHW * self.weight
        return (output, x_BCHW.flatten(2)) if repa else output


def test_each_picture_is_aligned_with_its_own_features(digits: Dataset, make_trainer: Callable[..., Trainer]) -> None:
    """All times are 0, so the model sees the pictures. With these as features the REPA term is zero."""
    objective = RectifiedFlow(name="rectified_flow", logit_mean=-30, logit_std=0.01, repa_weight=1000)
    features_NTE = digits.train.images(slice(None)).flatten(2)
    curves = []
    for features in (None, features_NTE, features_NTE.roll(1, 0)):
        trainer = make_trainer(
            model=Mirror(),
            objective=objective,
            features_NTE=features,
            predict=call_with_repa,
            lr=0.0,
            fold={},
            report_every=1,
        )
        curves.append(torch.tensor([point.value for point in trainer.advance(FOREVER) if point.name == "train_loss"]))
    plain, own, others = curves
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-3)
    assert (others - plain).min() > 100


def call_with_repa(model: nn.Module, *given: torch.Tensor, **more: bool) -> torch.Tensor:
    return model(*given, **more)


def test_validation_excludes_the_alignment(make_task: MakeTask, digits: Dataset) -> None:
    trainer = trainer_of(make_task(*ALIGNED), digits)
    trainer.advance(0.0)
    plain = trainer_of(make_task(*ALIGNED), digits, aligned=False)
    plain.restore(trainer.state())
    plain.objective = RectifiedFlow(name="rectified_flow")
    assert trainer.validate() == plain.validate()


@pytest.mark.parametrize("grad_clip", ["null", "0.5"])
def test_weight_zero_equals_training_without_a_projector(make_task: MakeTask, digits: Dataset, grad_clip: str) -> None:
    """Bit for bit: a projector draws last and its gradients are zeros. With clipping the sum's order differs."""
    options = ("training.steps=6", "training.checkpoint_every=6", f"optimizer.grad_clip={grad_clip}")
    plain = trainer_of(make_task(*options), digits)
    zero = trainer_of(make_task(*options, *ALIGNED), digits)
    zero.objective = RectifiedFlow(name="rectified_flow", repa_weight=0.0)
    plain.advance(FOREVER)
    zero.advance(FOREVER)
    theirs = zero.state().tensors["ema"]
    for name, tensor in plain.state().tensors["ema"].items():
        if grad_clip == "null":
            assert torch.equal(theirs[name], tensor), name
        else:
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16_trains_like_float32(make_task: MakeTask, digits: Dataset) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        task = make_task(*ALIGNED, "training.steps=10", "training.report_every=1", f"training.precision={precision}")
        trainer = trainer_of(task, digits)
        losses[precision] = [p.value for p in trainer.advance(FOREVER) if p.name == "train_loss"]
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_resume_equals_uninterrupted_run(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(*ALIGNED, "training.steps=8", "training.checkpoint_every=4", "training.report_every=4")
    run_attempt(job_of(task, tmp_path / "stopped"), stop_at=6)
    (_, resumed, _), (_, straight, _) = (run_attempt(job_of(task, tmp_path / name)) for name in ("stopped", "straight"))
    assert resumed is not None
    assert straight is not None
    assert (resumed.metric, resumed.resumed_at, straight.resumed_at) == (straight.metric, 4, 0)
