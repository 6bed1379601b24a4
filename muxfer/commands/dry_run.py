"""`muxfer sweep --dry-run`: every trial, its state and its cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from muxfer.commands.result import CommandResult
from muxfer.config.parse import parse_task
from muxfer.report.format import show_setting
from muxfer.report.terminal import table_lines
from muxfer.study.cost import training_flops
from muxfer.study.resolve import resolve
from muxfer.study.rounds import proposing
from muxfer.study.search import num_settings
from muxfer.study.session import open_ledger


def dry_run(name: str, overrides: Sequence[str]) -> CommandResult:
    """List every trial of the study: done, to resume at a step, or to run."""
    from muxfer.models.count import counter
    from muxfer.study.speeds import hours_at, speeds_of
    from muxfer.training.checkpoint import resume_step

    request = resolve(name, overrides, planned=True)
    propose = proposing(request.config, fingerprint=request.fingerprint)
    with open_ledger(request) as ledger:
        recorded = ledger.records(request.study)
    trials = propose(recorded)
    records = {record.key: record for record in recorded}
    count = counter(request.config)
    speeds, _ = speeds_of(request, count)
    rows: list[dict[str, Any]] = []
    for trial in trials:
        record = records.get(trial.key)
        step = resume_step(request.files.trial(trial.key), key=trial.key)
        state = "done" if record and record.outcome.settled else f"resume at {step}" if step else "run"
        task = parse_task(trial.task)
        cost = count(task.model)
        flops = training_flops(cost.macs, samples=task.training.steps * task.training.batch_size)
        hours = hours_at(flops, cost.macs, speeds) if record is None else record.train_seconds / 3600
        rows.append(
            {"key": trial.key, "setting": dict(trial.setting), "replicate": trial.replicate, "state": state}
            | {"parameters": cost.parameters, "flops": flops, "hours": hours}
        )
    lines = table_lines([_cells(row) for row in rows], align="llrrrl")
    search = request.config.search
    to_ask = 0 if search.num_settings is None else search.seeds * num_settings(search) - len(trials)
    if to_ask:
        lines.append(f"up to {to_ask} more, which depend on how these end")
    data = {"sweep": name, "study": request.study.key, "trials": rows, "to_ask": to_ask}
    return CommandResult(data=data, text="\n".join(lines))


def _cells(row: Mapping[str, Any]) -> list[str]:
    hours = "-" if row["hours"] is None else f"{row['hours']:.4f} h"
    setting, seed = show_setting(row["setting"]), f"seed {row['replicate']}"
    return [row["key"], setting, seed, f"{row['flops']:.2e} FLOPs", hours, row["state"]]
