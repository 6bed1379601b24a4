"""The step from a judged study to a target: which study, which setting, and every reason to refuse."""

import math

import pytest

from muxfer.analysis.transferability import best_setting, inside_grid, judge
from muxfer.config.parse import parse_task
from muxfer.errors import BadInput
from muxfer.study.match import proxy_task, studies_that_fit, the_study
from muxfer.study.trials import grid_trials, remaining, study_of
from muxfer.transfer.target import target_run
from tests.synthetic import settled

PRINT = "0" * 16


def loss(width, base_lr, *, best=2**-7):
    """A valley in log2 of the rate around `best`, deeper for a wider model."""
    return 0.5 - width / 2000 + 0.02 * math.log2(base_lr / best) ** 2


def study_with(config, metric=loss):
    """A study and its records, as the ledger would hand them back."""
    trials = grid_trials(config, fingerprint=PRINT)
    records = [
        settled(t.setting, metric(**t.setting), key=t.key, step=t.task["training"]["steps"], num_parameters=1000)
        for t in trials
    ]
    return study_of("lr-width", config, fingerprint=PRINT), trials, records


def run(config, study, trials, records, **changes):
    axis, hp = (study.identity["search"][key] for key in ("axis", "hp"))
    arguments = {
        "verdict": judge(records, axis=axis, hp=hp),
        "best": best_setting(records, axis=axis, hp=hp),
        "inside": inside_grid(records, axis=axis, hp=hp),
        "unfinished": len(remaining(trials, records)),
        "fingerprint": PRINT,
        "num_pictures": 1493,
        **changes,
    }
    return target_run(config, study, **arguments)


def test_the_target_has_the_best_setting_the_same_base_width_and_its_own_size(make_config):
    config = make_config()
    target = run(config, *study_with(config))
    task = parse_task(target.trial.task)
    assert dict(target.trial.setting) == {"base_lr": 2**-7}
    assert (task.model.width, task.model.base_width, task.training.steps) == (256, 64, config.target.steps)
    assert task.optimizer.base_lr == 2**-7
    assert target.trial.kind == "target"
    assert target.forced == ()
    assert target.lineage["winning_trial"] == target.winner.key
    assert target.winner.setting["width"] == 128, "the best is chosen at the largest proxy"


def test_the_targets_task_is_the_recorded_studys_not_the_command_lines(make_config):
    recorded = make_config("training.batch_size=16", "optimizer.weight_decay=0.1")
    target = run(make_config(), *study_with(recorded))
    task = parse_task(target.trial.task)
    assert (task.training.batch_size, task.optimizer.weight_decay) == (16, 0.1)


def test_an_unfinished_study_is_refused_and_force_says_so_in_the_record(make_config):
    study, trials, records = study_with(make_config())
    with pytest.raises(BadInput, match="2 trials are still to run"):
        run(make_config(), study, trials, records[2:])
    forced = run(make_config(), study, trials, records[2:], force=True)
    assert "still to run" in forced.lineage["forced"][0]


@pytest.mark.parametrize("edge", [2**-20, 2**20])
def test_an_optimum_at_the_edge_of_the_grid_is_refused(make_config, edge):
    config = make_config()
    with pytest.raises(BadInput, match="no finite optimum inside the grid"):
        run(config, *study_with(config, lambda width, base_lr: loss(width, base_lr, best=edge)))


def test_a_study_in_which_everything_diverged_is_refused_even_by_force(make_config):
    config = make_config()
    study, trials, records = study_with(config, lambda width, base_lr: None)
    with pytest.raises(BadInput, match="no finished trial"):
        run(config, study, trials, records, force=True)


def test_a_loss_of_exactly_0_is_refused_wherever_it_lies_and_force_says_so_in_the_record(make_config):
    config = make_config()

    def nothing_to_learn(width, base_lr):
        return 0.0 if (width, base_lr) == (128, 2**-7) else loss(width, base_lr)

    studied = study_with(config, nothing_to_learn)
    with pytest.raises(BadInput, match="can't be transferred: .*has a loss of exactly 0, .*--force"):
        run(config, *studied)
    forced = run(config, *studied, force=True)
    assert any("exactly 0" in objection for objection in forced.lineage["forced"])


def test_an_optimum_that_drifts_is_refused(make_config):
    config = make_config()

    def drifting(width, base_lr):
        noise = 0.0005 * math.sin(width + 100 * math.log2(base_lr))
        return 0.5 + 0.006 * math.log2(base_lr / 2**-6 * width / 32) ** 2 + noise

    with pytest.raises(BadInput, match="does not transfer"):
        run(config, *study_with(config, drifting))


def test_a_target_of_another_base_width_is_refused(make_config):
    config = make_config()
    study = study_with(config)
    with pytest.raises(BadInput, match="target.base_width 128 differs from the proxies' base width 64"):
        run(make_config("target.base_width=128"), *study, force=True)
    assert run(make_config("target.base_width=64"), *study).trial.task["model"]["base_width"] == 64


def test_a_target_width_that_no_model_can_have_is_refused(make_config):
    config = make_config("target.width=100")
    with pytest.raises(BadInput, match="model.width 100 is not divisible"):
        run(config, *study_with(config))


def studies(make_config):
    configs = [make_config(), make_config("optimizer.parametrization=standard")]
    return [study_of("lr-width", config, fingerprint=PRINT) for config in configs]


def test_two_studies_that_fit_are_refused_with_the_key_that_tells_them_apart(make_config):
    mup, standard = studies(make_config)
    with pytest.raises(BadInput, match=r"optimizer\.parametrization=mup or optimizer\.parametrization=standard"):
        the_study([mup, standard], mup, [])
    assert the_study([mup, standard], standard, ["optimizer.parametrization"]) == standard
    assert the_study([mup, standard], mup, ["optimizer"]) == mup


def test_one_recorded_study_is_found_without_its_overrides(make_config):
    mup, standard = studies(make_config)
    assert the_study([standard], mup, []) == standard
    assert studies_that_fit([standard], mup, ["optimizer.parametrization"]) == []


def test_no_recorded_study_is_refused_with_the_command_that_makes_one(make_config):
    mup, _ = studies(make_config)
    with pytest.raises(BadInput, match="run muxfer sweep lr-width first"):
        the_study([], mup, [])


def test_a_study_of_another_objective_is_read_back_with_its_own_keys(make_config):
    ddpm = make_config("objective=ddpm")
    task = proxy_task(make_config(), study_of("lr-width", ddpm, fingerprint=PRINT))
    assert task.objective == ddpm.objective


def test_objectives_are_told_apart_by_the_choice_that_hydra_takes(make_config):
    flow, ddpm = (study_of("lr-width", make_config(*more), fingerprint=PRINT) for more in ([], ["objective=ddpm"]))
    with pytest.raises(BadInput, match="objective=ddpm or objective=rectified_flow"):
        the_study([flow, ddpm], flow, [])


def test_of_two_studies_the_one_on_the_data_of_today_is_meant(make_config):
    old, new = (study_of("lr-width", make_config(), fingerprint=print_) for print_ in ("old", "new"))
    assert the_study([old, new], new, []) == new


def test_a_single_width_with_an_optimum_inside_the_grid_can_be_transferred(make_config):
    config = make_config("search.width=[64]")
    assert run(config, *study_with(config)).forced == ()


def test_a_target_that_equals_a_proxy_is_a_trial_of_its_own(make_config):
    config = make_config("target.width=128", "target.steps=180")
    study, trials, records = study_with(config)
    target = run(config, study, trials, records)
    alike = next(trial for trial in trials if trial.setting == {"width": 128, **target.trial.setting})
    assert target.trial.task == alike.task
    assert target.trial.key not in {trial.key for trial in trials}


def settings_of(target):
    return {one.name: one for one in target.settings}


def test_warm_up_goes_over_as_a_share_of_the_steps_and_the_window_is_one_already(make_config):
    config = make_config()
    assert (config.training.steps, config.training.warmup_steps, config.target.steps) == (180, 20, 1000)
    target = run(config, *study_with(config))
    told = settings_of(target)
    assert (told["warmup_steps"].how, told["warmup_steps"].value, told["warmup_steps"].target) == ("rescaled", 20, 111)
    assert "11.1 % of 180 steps" in told["warmup_steps"].why
    assert (told["ema_fraction"].how, told["ema_fraction"].target) == ("carried", 0.05)
    assert "9 steps becomes 50" in told["ema_fraction"].why
    assert parse_task(target.trial.task).training.warmup_steps == 111
    assert told["schedule"].how == "carried"


def test_a_targets_own_warm_up_is_taken_and_said(make_config):
    config = make_config("target.warmup_steps=7")
    target = run(config, *study_with(config))
    assert (settings_of(target)["warmup_steps"].how, target.task.training.warmup_steps) == ("given", 7)
    with pytest.raises(BadInput, match=r"target.warmup_steps 2000: expected 0 to target.steps 1000"):
        make_config("target.warmup_steps=2000")


@pytest.mark.parametrize(("share", "steps", "expected"), [(20, 4, 1), (180, 1000, 1000), (0, 1000, 0)])
def test_a_warm_up_stays_one_at_both_ends(make_config, share, steps, expected):
    config = make_config(f"training.warmup_steps={share}", f"target.steps={steps}")
    assert run(config, *study_with(config)).task.training.warmup_steps == expected


def test_a_cosine_schedule_is_said_to_stretch(make_config):
    config = make_config("training.schedule=cosine")
    told = settings_of(run(config, *study_with(config)))["schedule"]
    assert (told.how, told.why) == ("rescaled", "falls to 0 at step 1000, at 180 in the proxies")


DECAY = ["search.hp=weight_decay", "~search.base_lr", "search.weight_decay=[0.01,0.1,1]", "optimizer.weight_decay=0.02"]


def decay_loss(width, weight_decay):
    return 0.5 - width / 2000 + 0.02 * math.log10(weight_decay / 0.1) ** 2


def test_a_tuned_regularization_is_left_where_the_data_are_seen_more_than_once(make_config):
    config = make_config(*DECAY)
    target = run(config, *study_with(config, decay_loss))
    told = settings_of(target)["weight_decay"]
    assert (told.how, told.value, told.target) == ("left", 0.1, 0.02)
    assert "the proxies see the data 7.72 times, the target 42.9 times" in told.why
    assert target.task.optimizer.weight_decay == 0.02
    assert dict(target.trial.setting) == {"weight_decay": 0.02}, "the record has what the target was trained with"


def test_it_is_carried_where_neither_sees_them_twice(make_config):
    config = make_config(*DECAY)
    target = run(config, *study_with(config, decay_loss), num_pictures=64 * 1000)
    told = settings_of(target)["weight_decay"]
    assert (told.how, target.task.optimizer.weight_decay) == ("carried", 0.1)
    assert "never twice" in told.why
    longer = run(config, *study_with(config, decay_loss), num_pictures=64 * 1000 - 1)
    assert settings_of(longer)["weight_decay"].how == "left"


def test_the_users_word_on_regularization_is_taken(make_config):
    config = make_config(*DECAY, "target.weight_decay=0.3", "target.label_dropout=0.2")
    target = run(config, *study_with(config, decay_loss))
    assert (target.task.optimizer.weight_decay, target.task.training.label_dropout) == (0.3, 0.2)
    assert {settings_of(target)[name].how for name in ("weight_decay", "label_dropout")} == {"given"}


def test_regularization_that_was_not_tuned_stays_and_says_how_often_the_data_are_seen(make_config):
    told = settings_of(run(make_config(), *study_with(make_config())))
    assert (told["label_dropout"].how, told["label_dropout"].target) == ("carried", 0.1)
    assert "not tuned" in told["label_dropout"].why
    assert "weight_decay" not in told, "there is none"


def test_a_rate_that_overrules_the_studys_is_said_as_forced(make_config):
    config = make_config("target.base_lr=2**-4")
    target = run(config, *study_with(config))
    assert target.task.optimizer.base_lr == 2**-4
    assert target.forced == ("target.base_lr 2^-4 instead of the study's best 2^-7",)
    assert target.proxy.optimizer.base_lr == 2**-7, "the proxies' own is kept beside it"


def test_what_nobody_shows_to_transfer_says_so(make_config):
    config = make_config("target.depth=8", "target.batch_size=256")
    why = settings_of(run(config, *study_with(config)))["base_lr"].why
    assert why == (
        "transfers in width under mup; not known to transfer from depth 4 to 8; tuned at batch size 64, the target has"
        " 256"
    )
    standard = make_config("optimizer.parametrization=standard")
    assert "nothing says" in settings_of(run(standard, *study_with(standard)))["base_lr"].why


BATCH = ["search.axis=batch_size", "~search.width", "search.batch_size=[16,32]", "search.base_lr=[2**-8,2**-7,2**-6]"]


@pytest.mark.parametrize(("own", "expected"), [([], 32), (["target.batch_size=128"], 128)])
def test_along_batch_sizes_the_target_has_its_own_or_the_largest(make_config, own, expected):
    config = make_config(*BATCH, *own)

    def metric(batch_size, base_lr):
        return loss(64, base_lr) + 1 / batch_size

    target = run(config, *study_with(config, metric))
    assert target.task.training.batch_size == expected
    assert dict(target.trial.setting) == {"base_lr": 2**-7}
    assert settings_of(target)["batch_size"].target == expected


@pytest.mark.parametrize("said", ["off", "false", "'off'"])
def test_the_guard_can_be_put_off_in_every_spelling(make_config, said):
    assert not make_config(f"target.guard={said}").target.guarded
    assert make_config().target.guarded
    with pytest.raises(BadInput, match="target.guard is 'maybe': expected on or off"):
        make_config("target.guard=maybe")
