"""One trial from a job to a record: its curves, its resume, what it refuses, and the memory that it frees."""

import dataclasses
import gc
import weakref

import pytest

from muxfer.config.models import with_num_classes
from muxfer.data.source import load_dataset
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.worker import TrialRun
from muxfer.study.trials import grid_trials
from muxfer.training.checkpoint import resume_step
from muxfer.trial import Outcome
from tests.small_sweeps import run_attempt

TINY = ["search.width=[16]", "search.base_lr=[2**-6]", "model.base_width=16", "model.depth=1", "model.patch=4"]
TINY += ["training.steps=20", "training.warmup_steps=2", "training.checkpoint_every=8", "evaluation.timesteps=2"]
FAMILIES = {
    "dit": ["model.block=cross_attention"],
    "pixart": [],
    "uvit": [],
    "uvit on text": ["model.num_classes=null", "model.text_dim=32", "model.skip=residual"],
    "mmdit": ["model.repa_depth=1", "model.repa_dim=8", "objective.repa_weight=0.5"],
    "in_context": [],
    "cross_attention": ["objective=ddpm", "model.learn_sigma=true"],
}


@pytest.fixture
def make_job(make_config, tmp_path):
    """`make_job("model=pixart")`: the one trial of a small study with these overrides."""

    def make(*overrides):
        config = make_config(*TINY, *overrides)
        data = load_dataset(config.data)
        model = with_num_classes(config.model, data.num_classes)
        (trial,) = grid_trials(dataclasses.replace(config, model=model), fingerprint=data.fingerprint)
        return TrialJob(trial=trial, folder=str(tmp_path / "trial"), epoch=1)

    return make


@pytest.fixture
def job(make_job):
    return make_job()


def test_a_trial_ends_in_a_record_with_its_curves(job):
    _, record, points = run_attempt(job)
    assert (record.outcome, record.step, record.resumed_at) == (Outcome.FINISHED, 20, 0)
    assert 0 < record.metric < 2
    assert [point.step for point in points if point.name == "train_loss"] == [10, 20]
    assert resume_step(job.folder, key=job.trial.key) == 20


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_its_resumed_run_equals_the_uninterrupted_one(make_job, name):
    job = make_job(f"model={name.split()[0]}", *FAMILIES[name])
    run_attempt(job, stop_at=12)
    _, resumed, points = run_attempt(job)
    _, straight, all_points = run_attempt(dataclasses.replace(job, folder=f"{job.folder}-other"))
    assert (resumed.outcome, resumed.resumed_at) == (Outcome.FINISHED, 8)
    assert (resumed.metric, points) == (straight.metric, all_points), "bit for bit"
    assert 0 < resumed.metric < 2


def test_a_dropped_trial_frees_its_memory_without_garbage_collection(job):
    """A slot runs trial after trial on the same device, so a later collection would be too late."""
    gc.collect()
    gc.disable()
    try:
        trial_run, _, _ = run_attempt(job)
        tensors = trial_run.trainer.state().tensors
        held = [trial_run.trainer, *trial_run.trainer.model.parameters()]
        held += [*tensors["ema"].values(), *tensors["optimizer"].values()]
        references = [weakref.ref(one) for one in held]
        del trial_run, tensors, held
        assert not [reference() for reference in references if reference() is not None]
    finally:
        gc.enable()


def test_data_other_than_the_studys_are_refused(job):
    changed = dataclasses.replace(job, trial=dataclasses.replace(job.trial, fingerprint="0" * 16))
    with pytest.raises(BadInput, match="changed since the sweep began"):
        TrialRun(changed)
    executor = InlineExecutor()
    executor.submit([changed])
    (update,) = executor.updates(1.0)
    assert update.record.outcome is Outcome.FAILED
    assert "changed since the sweep began" in update.record.error
