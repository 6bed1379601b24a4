"""One trial from a job to a record: what it costs, what it refuses, where it goes on."""

import dataclasses
import gc
import weakref
from pathlib import Path

import pytest

from muxfer.config.models import with_num_classes
from muxfer.config.settings import with_setting
from muxfer.data.source import load_dataset
from muxfer.errors import BadInput
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.worker import TrialRun
from muxfer.models.count import measure
from muxfer.study.cost import estimated_macs, training_flops, tuning_ratio
from muxfer.study.trials import grid_trials, make_trial
from muxfer.training.attempt_folders import new_attempt
from muxfer.training.checkpoint import resume_step
from muxfer.trial import Outcome

TINY = ["search.width=[16]", "search.base_lr=[2**-6]", "model.base_width=16", "model.depth=1", "model.patch=4"]
TINY += ["training.steps=20", "training.warmup_steps=2", "training.checkpoint_every=8", "evaluation.timesteps=2"]


@pytest.fixture
def job(make_config, tmp_path):
    config = make_config(*TINY)
    data = load_dataset(config.data)
    model = with_num_classes(config.model, data.num_classes)
    (trial,) = grid_trials(dataclasses.replace(config, model=model), fingerprint=data.fingerprint)
    return TrialJob(trial=trial, folder=str(tmp_path / "trial"), epoch=1)


def run(job):
    attempt = TrialRun(job)
    points = []
    while True:
        report = attempt.advance(0.0)
        points += report.points
        if report.record is not None:
            return report.record, points


def test_a_trial_ends_in_a_record_with_its_curves(job):
    record, points = run(job)
    assert (record.outcome, record.step, record.resumed_at) == (Outcome.FINISHED, 20, 0)
    assert 0 < record.metric < 2
    assert [point.step for point in points if point.name == "train_loss"] == [10, 20]
    assert resume_step(Path(job.folder), key=job.trial.key) == 20


FAMILIES = {
    "dit": ["model.block=cross_attention"],
    "pixart": [],
    "uvit": [],
    "uvit on text": ["model.num_classes=null", "model.text_dim=32", "model.skip=residual"],
    "mmdit": ["model.repa_depth=1", "model.repa_dim=8", "objective.repa_weight=0.5"],
    "in_context": [],
    "cross_attention": ["objective=ddpm", "model.learn_sigma=true"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_on_real_images_and_resumes_bit_for_bit(make_config, tmp_path, name):
    config = make_config(*TINY, f"model={name.split()[0]}", *FAMILIES[name])
    data = load_dataset(config.data)
    model = with_num_classes(config.model, data.num_classes)
    (trial,) = grid_trials(dataclasses.replace(config, model=model), fingerprint=data.fingerprint)
    job = TrialJob(trial=trial, folder=str(tmp_path / "trial"), epoch=1)
    first = TrialRun(job)
    while first.trainer.step < 12:
        first.advance(0.0)
    record, _ = run(job)
    whole, _ = run(dataclasses.replace(job, folder=f"{job.folder}-other"))
    assert (record.outcome, record.resumed_at, record.metric) == (Outcome.FINISHED, 8, whole.metric)
    assert 0 < record.metric < 2


def test_a_second_attempt_goes_on_from_the_checkpoint_and_repeats_its_points(job):
    first = TrialRun(job)
    while first.trainer.step < 12:
        first.advance(0.0)
    record, points = run(job)
    assert record.resumed_at == 8
    whole, all_points = run(dataclasses.replace(job, folder=f"{job.folder}-other"))
    assert (record.metric, points) == (whole.metric, all_points), "bit for bit the uninterrupted trial's"


def test_what_a_trial_took_is_free_once_it_is_dropped(job):
    """Not at some later collection of garbage: a slot takes trial after trial, on the same device."""
    gc.collect()
    gc.disable()
    try:
        trial_run = TrialRun(job)
        while not trial_run.advance(0.0).final:
            pass
        tensors = trial_run.trainer.state().tensors
        held = [trial_run.trainer, *trial_run.trainer.model.parameters()]
        held += [*tensors["ema"].values(), *tensors["optimizer"].values()]
        found = [weakref.ref(one) for one in held]
        del trial_run, tensors, held
        assert not [one() for one in found if one() is not None]
    finally:
        gc.enable()


def test_other_data_than_the_studys_are_refused(job):
    changed = dataclasses.replace(job, trial=dataclasses.replace(job.trial, fingerprint="0" * 16))
    with pytest.raises(BadInput, match="changed since the sweep began"):
        TrialRun(changed)
    executor = InlineExecutor()
    executor.submit([changed])
    (report,) = executor.updates(1.0)
    assert report.record.outcome is Outcome.FAILED
    assert "changed since the sweep began" in report.record.error


def test_each_attempt_has_a_folder_of_its_own(tmp_path):
    folders = [new_attempt(tmp_path, epoch=3) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.name.startswith("attempt-0003-") for folder in folders)


def test_the_number_of_an_attempt_is_read_off_attempts_alone(tmp_path):
    for name in ("attempt-0003-07", "attempt-0003-x", "attempt-0004-09"):
        (tmp_path / name).mkdir()
    (tmp_path / "attempt-0003-08").write_text("a file")
    assert new_attempt(tmp_path, epoch=3).name == "attempt-0003-09"


@pytest.mark.parametrize("link", ["trials", "trials/key"])
def test_no_attempt_is_begun_behind_a_link(tmp_path, link):
    outside = tmp_path / "outside"
    (outside / "key").mkdir(parents=True)
    path = tmp_path / "study" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(BadInput, match=r"is a link to .*outside: expected a folder.*output_dir=FOLDER"):
        new_attempt(tmp_path / "study" / "trials" / "key", epoch=1)
    assert sorted(outside.rglob("*")) == [outside / "key"]


def test_multiply_accumulates_are_the_dit_papers(make_config):
    """DiT-S/2 on a 32x32x4 latent: 6.06 GMACs and 33M parameters (the paper says Gflops)."""
    model = dataclasses.replace(
        make_config().model,
        width=384, base_width=384, depth=12, head_dim=64, patch=2, image_size=32, channels=4, num_classes=1000,
        learn_sigma=True,
    )  # fmt: skip
    task = dataclasses.replace(make_config().task, model=model)
    cost = measure(task.model)
    assert cost.macs / 1e9 == pytest.approx(6.06, abs=0.01)
    assert cost.parameters / 1e6 == pytest.approx(33, abs=0.5)
    assert estimated_macs(model) == pytest.approx(cost.macs, rel=0.15)


def test_the_tuning_ratio_is_parameters_times_samples_over_the_targets():
    """PixArt-α's proxies: five trials of 0.04B parameters and 5 epochs for a target of 0.61B and 30 epochs, 5.5 %."""
    assert tuning_ratio([(40, 5)] * 5, (610, 30)) == pytest.approx(0.055, abs=0.0005)
    assert training_flops(10.0, samples=3) == 180.0


def test_a_longer_and_a_wider_trial_cost_more(make_config):
    task = make_config().task
    costs = [
        make_trial(with_setting(task, setting), setting, replicate=0, fingerprint="x").cost_flops
        for setting in ({"width": 64}, {"width": 128}, {"width": 128, "steps": 400})
    ]
    assert costs == sorted(costs)
    assert costs[2] > 2 * costs[1]
