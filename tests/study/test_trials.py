"""A study's identity and its trials' keys depend on what is trained, and on nothing else."""

import pytest

from muxfer.config.task import to_plain
from muxfer.errors import BadInput
from muxfer.study.trials import grid_trials, remaining, study_of, validate_search
from muxfer.trial import Outcome
from tests.synthetic import settled

PRINT = "0" * 16


def key_of(config):
    return study_of("lr-width", config, fingerprint=PRINT).key


def test_extending_the_grid_keeps_the_study_and_the_keys_of_its_trials(make_config):
    small, large = make_config("search.base_lr=[1e-3,2e-3]"), make_config("search.base_lr=[1e-3,2e-3,4e-3]")
    assert key_of(small) == key_of(large)
    keys = {trial.key for trial in grid_trials(large, fingerprint=PRINT)}
    assert {trial.key for trial in grid_trials(small, fingerprint=PRINT)} < keys
    assert len(keys) == 9


@pytest.mark.parametrize(
    "same",
    [
        *("search.seeds=3", "compute.slots=1", "compute.device=cpu", "training.checkpoint_every=7", "output_dir=x"),
        *("target.width=512", "evaluation.guidance=5", "ledger.experiment=other", "model.width=128"),
        "optimizer.base_lr=1",
    ],
)
def test_what_cannot_change_the_numbers_keeps_the_study(make_config, same):
    assert key_of(make_config(same)) == key_of(make_config())


@pytest.mark.parametrize(
    "other",
    [
        *("optimizer.parametrization=standard", "optimizer.weight_decay=0.1", "training.steps=100", "training.seed=1"),
        *("model.depth=2", "model.base_width=32", "objective=ddpm", "evaluation.timesteps=4"),
        "+search.grad_clip=[1,2]",
    ],
)
def test_what_changes_the_numbers_makes_another_study(make_config, other):
    assert key_of(make_config(other)) != key_of(make_config())


def test_other_data_makes_another_study_and_other_trials(make_config):
    config = make_config()
    assert study_of("a", config, fingerprint="1").key != study_of("a", config, fingerprint="2").key
    first, second = (grid_trials(config, fingerprint=print_)[0].key for print_ in "12")
    assert first != second


def test_keys_are_the_same_on_every_host_and_in_every_process(make_config):
    """Pinned: a ledger written today must be recognised tomorrow. Changes with NUMERICS_VERSION and the schema only."""
    config = make_config("search.width=64", "search.base_lr=[2**-7]")
    (trial,) = grid_trials(config, fingerprint=PRINT)
    assert trial.key == "c7e12c331e2edf3d"


def test_the_longest_trial_goes_first_and_settled_ones_not_at_all(make_config):
    trials = grid_trials(make_config("search.base_lr=[1e-3,2e-3]"), fingerprint=PRINT)
    assert [trial.setting["width"] for trial in remaining(trials, [])] == [128, 128, 64, 64, 32, 32]
    done = settled({}, None, key=trials[-1].key)
    failed = settled({}, None, key=trials[0].key, outcome=Outcome.FAILED)
    assert len(remaining(trials, [done, failed])) == 5


def test_a_width_of_the_grid_that_no_model_can_have_is_refused(make_config):
    with pytest.raises(BadInput, match="model.width 40 is not divisible by model.head_dim 16"):
        grid_trials(make_config("search.width=[40,64]"), fingerprint=PRINT)


def test_an_enormous_grid_is_refused_before_it_is_built(make_config):
    values = ",".join(str(16 * number) for number in range(1, 40))
    with pytest.raises(BadInput, match="expected at most"):
        grid_trials(make_config(f"search.width=[{values}]", "search.seeds=1000"), fingerprint=PRINT)


def test_a_task_travels_as_plain_data(make_config):
    task = grid_trials(make_config(), fingerprint=PRINT)[0].task
    assert type(task) is dict
    assert set(task) == set(to_plain(make_config().task))


def test_a_setting_whose_key_came_later_than_the_ledger_can_be_varied(make_config):
    """At its default the key is left out of what a study is: there is nothing to take out."""
    config = make_config("search.repa_weight=[0.5,1]")
    assert study_of("a", config, fingerprint=PRINT).identity["search"]["varied"] == ["base_lr", "repa_weight", "width"]


def test_another_sampler_makes_another_study_and_more_draws_or_wider_bounds_do_not(make_config):
    drawn = ["search.sampler=tpe", "search.num_settings=4", "search.base_lr={uniform:[0.1,1]}"]
    key = key_of(make_config(*drawn))
    assert key != key_of(make_config())
    assert key != key_of(make_config(*drawn, "search.sampler=qmc"))
    assert key == key_of(make_config(*drawn, "search.num_settings=8", "search.base_lr={uniform:[0.1,2]}"))
    assert key == key_of(make_config(*drawn, "search.finalists=2", "search.finalist_steps=900"))


def test_spaces_are_held_against_the_task_before_anything_is_drawn(make_config):
    drawn = ["search.sampler=random", "search.num_settings=4", "search.base_lr={uniform:[0.1,1]}"]
    validate_search(make_config(*drawn, "search.warmup_steps={integer:[0,180]}"))
    with pytest.raises(BadInput, match="training.warmup_steps 181: expected 0 to training.steps 180"):
        validate_search(make_config(*drawn, "search.warmup_steps={integer:[0,181]}"))
