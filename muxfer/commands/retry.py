"""`muxfer retry`: run a study's failed trials again, and nothing else."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from muxfer.commands.result import CommandResult
from muxfer.errors import BadInput, TrialsFailed
from muxfer.executors.ray_on_demand import ray_on_demand
from muxfer.study.recorded import read_study
from muxfer.study.resolve import PrintLine, resolve
from muxfer.study.retention import plan_retention
from muxfer.study.session import drive, open_ledger
from muxfer.trial import NUMERICS_VERSION, Outcome, Record, Trial


def retry(name: str, overrides: Sequence[str], *, print_line: PrintLine) -> CommandResult:
    """Run the failed trials of a recorded study again, and nothing else; they go on from their checkpoints."""
    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        recorded = read_study(request, ledger)
        study, trials = recorded.study, recorded.trials
        if (numerics := study.identity["numerics"]) != NUMERICS_VERSION:
            raise BadInput(
                f"study {study.label} was trained with numerics {numerics}, this version has {NUMERICS_VERSION}: its"
                f" trials can't be gone on with; muxfer sweep {name} makes a study of its own"
            )
        data: dict[str, Any] = {"sweep": name, "study": study.key, "retried": 0, "failed": 0, "trials": []}
        todo = _failed_trials(trials, recorded.all_records)
        if not todo:
            return CommandResult(data=data, text=f"no trial of {study.label} has failed")
        print_line(f"study {study.label}: {len(todo)} failed trials, once more")
        files = request.files_of(study)
        config = replace(recorded.config, compute=request.config.compute, checkpoints=request.config.checkpoints)
        retention = plan_retention(config, trials, folder=files.trials, print_line=print_line)
        with (
            ray_on_demand(config.compute, files.path, likely=False) as start_ray,
            drive(request, ledger=ledger, recorded=study) as session,
        ):
            records = session.records()  # again: another driver may have settled some while we waited for the lease
            todo = _failed_trials(trials, records)
            ran = session.run(todo, records, start_executor=start_ray, retention=retention)
    failed = [record for record in ran.records if record.outcome is Outcome.FAILED]
    ended = [{"key": record.key, "outcome": str(record.outcome)} for record in ran.records]
    data |= {"retried": len(todo), "failed": len(failed), "trials": ended}
    text = f"{len(ran.records) - len(failed)} of {len(todo)} failed trials are settled now"
    if not todo:
        text = f"no trial of {study.label} has failed any more: another driver settled them meanwhile"
    if failed:
        text += f"; the first that failed again: {failed[0].error}"
    elif todo:
        text += f"; write the page again with: muxfer report {shlex.join([name, *overrides])}"
    return CommandResult(data=data, text=text, exit_code=TrialsFailed.exit_code if failed else 0)


def _failed_trials(trials: Sequence[Trial], records: Sequence[Record]) -> list[Trial]:
    failed = {record.key for record in records if record.outcome is Outcome.FAILED}
    return [trial for trial in trials if trial.key in failed]
