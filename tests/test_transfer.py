"""The step from a judged study to a target: which study, which setting, and every reason to refuse."""

import math

import pytest

from muxfer.analysis.transferability import best_setting, inside_grid, judge
from muxfer.errors import BadInput
from muxfer.parse import parse_task
from muxfer.plan import grid_trials, remaining, study_of
from muxfer.transfer import proxy_task, studies_that_fit, target_run, the_study
from muxfer.trial import Outcome, Record

PRINT = "0" * 16


def loss(width, base_lr, *, best=2**-7):
    """A valley in log2 of the rate around `best`, deeper for a wider model."""
    return 0.5 - width / 2000 + 0.02 * math.log2(base_lr / best) ** 2


def study_with(config, metric=loss):
    """A study and its records, as the ledger would hand them back."""
    trials = grid_trials(config, fingerprint=PRINT)
    records = []
    for trial in trials:
        value = metric(**trial.setting)
        records.append(
            Record(
                key=trial.key,
                setting=trial.setting,
                replicate=0,
                outcome=Outcome.FINISHED if value is not None else Outcome.DIVERGED,
                metric=value,
                step=200,
                num_parameters=1000,
            )
        )
    return study_of("lr-width", config, fingerprint=PRINT), trials, records


def run(config, study, trials, records, **changes):
    arguments = {
        "verdict": judge(records, axis="width", hp="base_lr"),
        "best": best_setting(records, axis="width", hp="base_lr"),
        "inside": inside_grid(records, axis="width", hp="base_lr"),
        "unfinished": len(remaining(trials, records)),
        "fingerprint": PRINT,
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


def test_an_optimum_that_drifts_is_refused(make_config):
    config = make_config()

    def drifting(width, base_lr):
        return loss(width, base_lr, best=2**-6 * 32 / width)

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
    assert target.trial.task == target_like(trials, target.trial.setting)
    assert target.trial.key not in {trial.key for trial in trials}


def target_like(trials, setting):
    return next(t.task for t in trials if t.setting == {"width": 128, **setting})
