"""`muxfer retry`: run a study's failed trials again, and nothing else."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from muxfer.commands.result import CommandResult
from muxfer.commands.sweep import ray_ahead
from muxfer.errors import BadInput, TrialsFailed
from muxfer.study.loop import run_study
from muxfer.study.progress import Progress
from muxfer.study.recorded import expect_taken, recorded
from muxfer.study.resolve import PrintLine, resolve
from muxfer.study.retention import planned
from muxfer.study.session import driving, open_ledger
from muxfer.trial import NUMERICS_VERSION, Outcome, Record, Trial


def retry(name: str, overrides: Sequence[str], *, print_line: PrintLine) -> CommandResult:
    """Run the failed trials of a recorded study again, and nothing else; they go on from their checkpoints."""
    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        study, config, trials = recorded(request, ledger)
        if study.identity["numerics"] != NUMERICS_VERSION:
            raise BadInput(
                f"study {study.label} was trained with numerics {study.identity['numerics']}, this version has"
                f" {NUMERICS_VERSION}: its trials can't be gone on with; muxfer sweep {name} makes a study of its own"
            )

        def lost(records: Sequence[Record]) -> list[Trial]:
            failed = {record.key for record in records if record.outcome is Outcome.FAILED}
            return [trial for trial in trials if trial.key in failed]

        again = lost(ledger.records(study))
        data: dict[str, Any] = {"sweep": name, "study": study.key, "retried": len(again), "failed": 0, "trials": []}
        if not again:
            return CommandResult(data=data, text=f"no trial of {study.label} has failed")
        print_line(f"study {study.label}: {len(again)} failed trials, once more")
        config = replace(config, compute=request.config.compute, checkpoints=request.config.checkpoints)
        home = request.folder / study.label
        retention = planned(config, trials, folder=home / "trials", print_line=print_line)
        with ray_ahead(request, home, likely=False) as start_ray, driving(request, study, ledger, None) as lease:
            records = ledger.records(study)  # once more: another driver may have settled some while we waited for it
            again = lost(records)
            ran = run_study(
                again,
                records,
                study=study,
                ledger=ledger,
                lease=lease,
                start_executor=start_ray,
                folder=request.folder,
                progress=Progress(),
                retention=retention,
            )
            ledger.flush(request.config.ledger.patience_seconds)
            expect_taken(ledger, study, ran.records)
    failed = [record for record in ran.records if record.outcome is Outcome.FAILED]
    data |= {
        "retried": len(again),
        "failed": len(failed),
        "trials": [{"key": r.key, "outcome": str(r.outcome)} for r in ran.records],
    }
    text = f"{len(ran.records) - len(failed)} of {len(again)} failed trials are settled now"
    if not again:
        text = f"no trial of {study.label} has failed any more: another driver settled them meanwhile"
    if failed:
        text += f"; the first that failed again: {failed[0].error}"
    elif again:
        text += f"; write the page again with: muxfer report {shlex.join([name, *overrides])}"
    return CommandResult(data=data, text=text, exit_code=TrialsFailed.exit_code if failed else 0)
