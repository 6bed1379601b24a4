"""What a study asks to be run, given what the ledger holds of it, and what of that is still to be done."""

from collections.abc import Callable, Sequence
from typing import Any

from muxfer import plan
from muxfer.config import Config
from muxfer.cost import training_flops
from muxfer.parse import parse_task
from muxfer.progress import show_setting
from muxfer.request import Answer, open_ledger, request
from muxfer.search import Fixed, Searcher, grid, num_settings
from muxfer.study import trial_folder
from muxfer.trial import NUMERICS_VERSION, Record, Trial

Propose = Callable[[Sequence[Record]], list[Trial]]
"""From the ledger's records to every trial of the rounds up to the one under way."""


def proposing(config: Config, *, fingerprint: str, numerics: int = NUMERICS_VERSION) -> Propose:
    """BadInput where the search is too large, or reaches where no task can go.

    `numerics`: of the version that ran the study, where that is a recorded one.
    """
    plan.check_search(config)
    searcher = searcher_of(config)
    return lambda records: plan.trials_of(
        searcher.settings(records), config, fingerprint=fingerprint, numerics=numerics
    )


def searcher_of(config: Config) -> Searcher:
    search = config.search
    if search.sampler == "grid":
        return Fixed(known=tuple(grid(search)))
    if search.sampler == "isoflop":
        from muxfer.budget import counter
        from muxfer.isoflop import isoflop_settings

        return Fixed(known=tuple(isoflop_settings(search, config.task, counter(config))))
    from muxfer.adapters.optuna_search import OptunaSearcher

    return OptunaSearcher(search, seed=config.training.seed)


def dry_run(name: str, overrides: Sequence[str]) -> Answer:
    """Each trial that `sweep` would look after: done, to resume at a step, or to run."""
    from muxfer.budget import counter, hours_at, speeds_of
    from muxfer.worker import resume_step

    asked = request(name, overrides, planned=True)
    propose = proposing(asked.config, fingerprint=asked.fingerprint)
    with open_ledger(asked) as ledger:
        recorded = ledger.records(asked.study)
    trials = propose(recorded)
    records = {record.key: record for record in recorded}
    count = counter(asked.config)
    speeds, _ = speeds_of(asked, count)
    rows: list[dict[str, Any]] = []
    for trial in trials:
        record = records.get(trial.key)
        step = resume_step(trial_folder(asked.folder, asked.study, trial), key=trial.key)
        state = "done" if record and record.outcome.settled else f"resume at {step}" if step else "run"
        task = parse_task(trial.task)
        cost = count(task.model)
        flops = training_flops(cost.macs, samples=task.training.steps * task.training.batch_size)
        hours = hours_at(flops, cost.macs, speeds) if record is None else record.train_seconds / 3600
        rows.append(
            {"key": trial.key, "setting": dict(trial.setting), "replicate": trial.replicate, "state": state}
            | {"parameters": cost.parameters, "flops": flops, "hours": hours}
        )
    lines = [
        f"{row['key']}  {show_setting(row['setting']):<30} seed {row['replicate']}  {row['flops']:.2e} FLOPs  "
        f"{'   -   ' if row['hours'] is None else format(row['hours'], '.4f') + ' h'}  {row['state']}"
        for row in rows
    ]
    search = asked.config.search
    to_ask = 0 if search.num_settings is None else search.seeds * num_settings(search) - len(trials)
    if to_ask:
        lines.append(f"up to {to_ask} more, which depend on how these end")
    data = {"sweep": name, "study": asked.study.key, "trials": rows, "to_ask": to_ask}
    return Answer(data=data, text="\n".join(lines))
