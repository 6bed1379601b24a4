"""Which checkpoints stay: the last two of what runs, the best of what is over, and all of it within a budget."""

import dataclasses
import random
import shutil

import pytest
import torch

from muxfer.commands.export import weights_of
from muxfer.config.models import with_num_classes
from muxfer.config.settings import with_setting
from muxfer.config.study import Checkpoints
from muxfer.errors import BadInput
from muxfer.files import StudyFolder
from muxfer.models.count import measure
from muxfer.study import retention
from muxfer.study.cost import most_parameters
from muxfer.study.retention import Held, Retention, plan_retention, to_delete
from muxfer.study.trials import grid_trials, study_of
from muxfer.training import checkpoint
from muxfer.training.attempt_folders import highest_epoch
from muxfer.training.checkpoint import Snapshot
from muxfer.trial import Outcome, Record
from proxy_models.dit import BLOCKS


def held(key, metric, *, size=10, written=0, target=False):
    return Held(key=key, size=size, metric=metric, written=written, target=target)


def keys(found):
    return [one.key for one in found]


def test_all_stay_where_all_fit():
    assert to_delete([held("a", 1.0), held("b", None)], room=20) == []


def test_the_best_stay_then_the_newest_and_what_diverged_goes_first():
    trials = [held("worst", 3.0), held("best", 1.0), held("old", 2.0, written=1), held("new", 2.0, written=2)]
    trials += [held("diverged", None, written=9)]
    assert keys(to_delete(trials, room=40)) == ["diverged"]
    assert keys(to_delete(trials, room=39)) == ["worst", "diverged"]
    assert keys(to_delete(trials, room=20)) == ["old", "worst", "diverged"]


def test_the_best_of_all_and_the_targets_stay_whatever_the_budget():
    trials = [held("best", 1.0), held("target", 5.0, target=True), held("next", 2.0)]
    assert keys(to_delete(trials, room=20)) == ["next"]
    assert keys(to_delete(trials, room=-100)) == ["best", "next"]
    assert keys(to_delete([held("only", None)], room=0)) == []
    assert keys(to_delete([held("one", 0.0, size=100), held("small", 1.0, size=1)], room=50)) == ["small"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_held_the_budget_holds_or_one_is_left(seed):
    rng = random.Random(seed)
    trials = [
        held(str(i), rng.choice([None, rng.random()]), size=rng.randint(1, 50), written=rng.randint(0, 3))
        for i in range(rng.randint(1, 30))
    ]
    room = rng.randint(0, 600)
    gone = set(keys(to_delete(trials, room=room)))
    stay = [one for one in trials if one.key not in gone]
    assert len(stay) == 1 or sum(one.size for one in stay) <= room
    finished = [one.metric for one in stay if one.metric is not None]
    lost = [one.metric for one in trials if one.key in gone and one.metric is not None]
    assert not (finished and lost) or max(finished) <= min(lost)


def save(folder, key, *steps, attempt="attempt-0001-00"):
    values = torch.arange(1000, dtype=torch.float32)
    for step in steps:
        tensors = {"model": {"w": values + step}, "ema": {"w": values}, "optimizer": {"w.exp_avg": values}}
        checkpoint.save(folder / key / attempt, Snapshot(step=step, tensors=tensors, state={}), key=key)


def record(key, metric=None, *, outcome=Outcome.FINISHED, kind="proxy"):
    return Record(key=key, setting={}, replicate=0, outcome=outcome, metric=metric, step=20, kind=kind, run_id="run")


def steps_of(folder):
    return {
        path.name: [step.name[-2:] for step in sorted(path.glob("attempt-*/step-*"))]
        for path in sorted(folder.iterdir())
    }


def test_a_trial_that_is_over_keeps_its_newest_and_a_running_one_both(tmp_path):
    for key in ("done", "diverged", "failed", "runs"):
        save(tmp_path, key, 10, 20)
    keeper = Retention(tmp_path, budget_bytes=10**9, running_bytes=0)
    keeper.begin([], epoch=1)
    keeper.settle(record("done", 0.5), running=["runs"])
    keeper.settle(record("diverged", outcome=Outcome.DIVERGED), running=["runs"])
    keeper.settle(record("failed", outcome=Outcome.FAILED), running=["runs"])
    assert steps_of(tmp_path) == {"diverged": ["20"], "done": ["20"], "failed": ["10", "20"], "runs": ["10", "20"]}
    for key in ("done", "failed", "runs"):
        assert checkpoint.load_newest(tmp_path / key, key=key).snapshot.step == 20


def test_over_the_budget_the_best_finished_ones_stay_and_no_half_done_trial_loses_anything(tmp_path):
    save(tmp_path, "half", 10, 20)
    keeper = Retention(tmp_path, budget_bytes=checkpoint.stored_bytes(tmp_path / "half") * 2, running_bytes=0)
    keeper.begin([], epoch=1)
    for key, metric in (("a", 0.3), ("b", 0.1), ("c", 0.2), ("d", 0.4)):
        save(tmp_path, key, 10, 20)
        keeper.settle(record(key, metric), running=[])
    save(tmp_path, "failed", 10)
    keeper.settle(record("failed", outcome=Outcome.FAILED), running=[])
    assert steps_of(tmp_path) == {"a": [], "b": ["20"], "c": [], "d": [], "failed": ["10"], "half": ["10", "20"]}
    assert checkpoint.is_deleted(tmp_path / "a")
    assert not checkpoint.is_deleted(tmp_path / "b")


def test_what_a_killed_driver_did_not_tidy_the_next_one_does(tmp_path):
    for key in ("a", "b"):
        save(tmp_path, key, 10, attempt="attempt-0001-00")
        save(tmp_path, key, 10, 20, attempt="attempt-0002-00")
    (tmp_path / "a" / "attempt-0001-00" / ".step-00000030.7.tmp").mkdir()
    Retention(tmp_path, budget_bytes=10**9, running_bytes=0).begin([record("a", 0.5)], epoch=3)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["attempt-0002-00"]
    assert steps_of(tmp_path) == {"a": ["20"], "b": ["10", "10", "20"]}


def test_the_newest_is_the_newest_whole_one(tmp_path):
    save(tmp_path, "a", 10, 20)
    (tmp_path / "a" / "attempt-0001-00" / "step-00000020" / "ema.safetensors").write_bytes(b"")
    Retention(tmp_path, budget_bytes=10**9, running_bytes=0).begin([record("a", 0.5)], epoch=1)
    assert steps_of(tmp_path) == {"a": ["10"]}


def test_an_export_of_weights_that_went_says_so(tmp_path):
    save(tmp_path / "trials", "a", 20)
    assert weights_of(record("a", 0.5), StudyFolder(tmp_path)).keys() == {"w"}
    checkpoint.delete_all(tmp_path / "trials" / "a", epoch=1)
    with pytest.raises(BadInput, match="run was deleted to keep those of better trials"):
        weights_of(record("a", 0.5), StudyFolder(tmp_path))


def test_what_could_not_be_deleted_is_not_forgotten(tmp_path):
    """A ledger out of a backup, or another one: attempts of a higher epoch than ours lie there."""
    save(tmp_path, "a", 10, attempt="attempt-0007-00")
    save(tmp_path, "a", 20)
    keeper = Retention(tmp_path, budget_bytes=1, running_bytes=0)
    keeper.begin([record("a", 0.5)], epoch=1)
    save(tmp_path, "b", 20)
    keeper.settle(record("b", 0.1), running=[])
    assert steps_of(tmp_path) == {"a": ["20", "10"], "b": ["20"]}
    shutil.rmtree(tmp_path / "a" / "attempt-0007-00")
    save(tmp_path, "c", 20)
    keeper.settle(record("c", 0.2), running=[])
    assert steps_of(tmp_path) == {"a": [], "b": ["20"], "c": []}


def test_the_highest_epoch_is_of_real_attempts_alone(tmp_path):
    assert highest_epoch(tmp_path) == 0
    trials = tmp_path / "trials"
    for name in ("a/attempt-0007-03", "a/attempt-0009-00", "b/attempt-12345-00", "b/attempt-mine-00", "b/step-9999999"):
        (trials / name).mkdir(parents=True)
    (trials / "b" / "attempt-20000-00").write_text("a file")
    (trials / "b" / f"attempt-{10**9}-00").mkdir()
    outside = tmp_path / "outside" / "attempt-30000-00"
    outside.mkdir(parents=True)
    (trials / "c").symlink_to(outside.parent)
    (trials / "b" / outside.name).symlink_to(outside)
    assert highest_epoch(tmp_path) == 12345
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "trials").symlink_to(trials)
    assert highest_epoch(tmp_path / "study") == 0


def test_links_and_files_in_the_place_of_trials_are_let_be(tmp_path):
    trials, outside = tmp_path / "trials", tmp_path / "outside"
    save(trials, "a", 10, 20)
    save(outside, "b", 10, 20)
    (trials / "b").symlink_to(outside / "b")
    (trials / "c").write_text("a file")
    (trials / "a" / "attempt-0001-00" / "step-00000030").write_text("a file")
    keeper = Retention(trials, budget_bytes=0, running_bytes=0)
    keeper.begin([record(key, 0.5) for key in "abc"], epoch=1)
    keeper.settle(record("b", 0.1), running=[])
    assert steps_of(outside) == {"b": ["10", "20"]}
    assert steps_of(trials)["a"] == ["20", "30"]


SMALL = ["search.width=[16,32]", "search.base_lr=[2**-8,2**-6]", "model.base_width=32", "model.depth=1"]


def plan_of(make_config, folder, *overrides, checkpoints=None, print_line=None):
    """The plan of four trials, two at a time, with a budget of so many of their largest checkpoints."""
    config = make_config(*SMALL, "compute.slots=2", *overrides)
    config = dataclasses.replace(config, model=with_num_classes(config.model, 10))
    if checkpoints is not None:
        each = 16 * measure(with_setting(config.task, {"width": 32}).model).parameters
        config = dataclasses.replace(config, checkpoints=Checkpoints(budget_gb=checkpoints * each / 1e9))
    return plan_retention(
        config, grid_trials(config, fingerprint="0" * 16), folder=folder, print_line=print_line or pytest.fail
    )


def test_a_budget_for_everything_is_silent_and_no_part_of_the_study(make_config, tmp_path):
    plan_of(make_config, tmp_path / "trials", "checkpoints.budget_gb=1")
    plan_of(make_config, tmp_path / "trials")
    plain, with_budget = (make_config(*given) for given in ([], ["checkpoints.budget_gb=1"]))
    assert study_of("s", plain, fingerprint="0").key == study_of("s", with_budget, fingerprint="0").key


def test_a_budget_for_a_few_is_said_before_anything_starts(make_config, tmp_path):
    said = []
    plan_of(make_config, tmp_path, checkpoints=8.01, print_line=said.append)
    assert [line[: line.index(" is ")] for line in said] == [
        "of 4 trials the best 2 keep a checkpoint: checkpoints.budget_gb"
    ]
    plan_of(make_config, tmp_path, checkpoints=10.01)


def test_a_budget_that_cannot_hold_what_runs_is_refused(make_config, tmp_path):
    plan_of(make_config, tmp_path, checkpoints=7.01, print_line=str)
    with pytest.raises(BadInput, match="MB at least, 2 trials at a time with 3 of .* checkpoints.budget_gb is .* free"):
        plan_of(make_config, tmp_path, checkpoints=6.99)
    with pytest.raises(BadInput, match="checkpoints.budget_gb -1.0: expected a number above 0"):
        make_config("checkpoints.budget_gb=-1")


def test_a_folder_of_trials_that_is_a_link_is_refused_before_anything_starts(make_config, tmp_path):
    (tmp_path / "trials").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="trials is a link to .*: expected a folder"):
        plan_of(make_config, tmp_path / "trials")


def test_without_a_budget_it_is_what_is_free_but_a_gigabyte(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "SPARE_BYTES", 10**18)
    with pytest.raises(BadInput, match=r"trials has .* GB free, of which 1e\+09 GB is left alone"):
        plan_of(make_config, tmp_path / "trials")


MODELS = [[f"model.block={block}", "model.num_classes=10"] for block in BLOCKS]
MODELS += [["model=pixart"], ["model=uvit", "model.num_classes=10"], ["model=in_context"], ["model=cross_attention"]]
MODELS += [["model=mmdit", "model.repa_depth=1", "model.repa_dim=768", "objective.repa_weight=0.5"]]


@pytest.mark.parametrize("overrides", MODELS, ids=" ".join)
@pytest.mark.parametrize("width", [16, 256])
def test_no_model_has_more_parameters_than_the_most(make_config, overrides, width):
    model = with_setting(make_config(*overrides).task, {"width": width}).model
    parameters = measure(model).parameters
    assert parameters <= most_parameters(model)
    if width == 256:
        assert most_parameters(model) < 4 * parameters


def test_a_driver_that_was_taken_over_and_does_not_know_it_takes_nothing_from_who_works_there(tmp_path):
    save(tmp_path, "a", 10, 20)
    save(tmp_path, "a", 30, attempt="attempt-0002-00")
    half_written = tmp_path / "a" / "attempt-0002-00" / ".step-00000040.1.tmp"
    half_written.mkdir()
    late, living = (Retention(tmp_path, budget_bytes=0, running_bytes=0) for _ in range(2))
    late.begin([], epoch=1)
    late.settle(record("a", 0.5), running=[])
    assert half_written.exists()
    assert steps_of(tmp_path) == {"a": ["10", "20", "30"]}
    living.begin([record("a", 0.5)], epoch=2)
    assert steps_of(tmp_path) == {"a": ["30"]}
    assert not half_written.exists()
