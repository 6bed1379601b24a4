"""`muxfer status`: the studies of a ledger, their drivers and the progress of their trials, from the ledger alone.
Without a name it prints one line for each study and does not read trials: a ledger may hold tens of thousands.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from muxfer.commands.result import CommandResult
from muxfer.config.parse import parse
from muxfer.errors import BadInput
from muxfer.ledger.base import Ledger, Standing
from muxfer.ledger.holder import Holder
from muxfer.report.format import show_seconds, show_setting
from muxfer.study.match import the_study
from muxfer.study.resolve import PrintLine, resolve, resolve_without_data
from muxfer.study.rounds import proposing
from muxfer.study.session import open_ledger
from muxfer.trial import Outcome, Study, Trial

ANY = "lr-width"  # A sweep that always exists. Without a name only its ledger and folder are used.
WATCH_SECONDS = 2.0


class StudyState(StrEnum):
    """RUNNING: its driver is alive. INTERRUPTED: its driver is dead. SILENT: its driver can't be seen, nor heard."""

    AT_REST = "at rest"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    SILENT = "silent"


class TrialState(StrEnum):
    """PAUSED: it ended in order with steps to go."""

    FINISHED = Outcome.FINISHED
    DIVERGED = Outcome.DIVERGED
    FAILED = Outcome.FAILED
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    PAUSED = "paused"
    TO_RUN = "to run"


def status(name: str | None, overrides: Sequence[str], *, print_line: PrintLine, watch: bool = False) -> CommandResult:
    """The state of the studies of a name, or a list of all. `watch` prints changes until no study is driven."""
    exact = name is not None and overrides
    request = resolve(name or ANY, overrides, planned=True) if exact else resolve_without_data(name or ANY)
    with open_ledger(request, existing=True) as ledger:
        printed = ""
        while True:
            studies = sorted(ledger.studies(name), key=lambda study: study.label)
            if exact:
                studies = [the_study(studies, request.study, request.overridden)]
            if name is not None and not studies:
                raise BadInput(f"this ledger has no study of sweep {name}: run muxfer sweep {name} first")
            states = [_study(study, ledger, trials=name is not None) for study in studies]
            text = "\n".join("\n".join(_lines(one)) for one in states) or "no study is recorded yet"
            if not watch or not any(one["state"] == StudyState.RUNNING for one in states):
                return CommandResult(data={"studies": states}, text=text)
            if text != printed:
                print_line(text + "\n")
                printed = text
            time.sleep(WATCH_SECONDS)


def _study(study: Study, ledger: Ledger, *, trials: bool) -> dict[str, Any]:
    holder = ledger.driver(study)
    data: dict[str, Any] = {
        "sweep": study.name,
        "study": study.key,
        "label": study.label,
        "state": str(StudyState.AT_REST if holder is None else _driven(holder)),
        "driver": None if holder is None else {"host": holder.host, "pid": holder.pid, "since": holder.since},
    }
    if holder is not None and holder.beat is not None:
        data["driver"]["beat"] = holder.beat.isoformat()
    if not trials:
        return data
    config = parse(ledger.config(study))
    standings = {standing.key: standing for standing in ledger.standings(study)}
    records = [standing.record for standing in standings.values() if standing.record is not None]
    fingerprint, numerics = str(study.identity["data_fingerprint"]), study.identity["numerics"]
    driven = data["state"] == StudyState.RUNNING
    wanted = proposing(config, fingerprint=fingerprint, numerics=numerics)(records)
    states = {trial.key: _state(standings.get(trial.key), driven=driven) for trial in wanted}
    counts = Counter(states.values())
    settled = [record for record in records if record.key in states]
    best = min((r for r in settled if r.metric is not None), key=lambda record: record.metric or 0.0, default=None)
    underway = [trial for trial in wanted if states[trial.key] in (TrialState.RUNNING, TrialState.INTERRUPTED)]
    data |= {
        "trials": len(wanted),
        "states": {str(state): counts[state] for state in TrialState if counts[state]},
        "lowest": None if best is None else {"setting": dict(best.setting), "metric": best.metric},
        "seconds_left": _seconds_left(wanted, standings) if driven else None,
        "underway": [_underway(trial, standings[trial.key], states[trial.key]) for trial in underway],
        "failed": [
            {"key": record.key, "setting": dict(record.setting), "replicate": record.replicate, "error": record.error}
            for record in settled
            if record.outcome is Outcome.FAILED
        ],
        "targets": [
            {"key": s.key, "state": str(_state(s, driven=driven)), "step": s.step, "loss": s.loss}
            | ({} if s.record is None else {"step": s.record.step, "metric": s.record.metric})
            for s in standings.values()
            if s.kind == "target"
        ],
    }
    return data


def _driven(holder: Holder) -> StudyState:
    alive = holder.alive()
    if alive is None:
        return StudyState.SILENT if holder.silent() else StudyState.RUNNING
    return StudyState.RUNNING if alive else StudyState.INTERRUPTED


def _state(standing: Standing | None, *, driven: bool) -> TrialState:
    if standing is None:
        return TrialState.TO_RUN
    if standing.record is not None:
        return TrialState(standing.record.outcome)
    if not standing.running:
        return TrialState.PAUSED
    return TrialState.RUNNING if driven else TrialState.INTERRUPTED


def _underway(trial: Trial, standing: Standing, state: TrialState) -> dict[str, Any]:
    about = {"key": trial.key, "setting": dict(trial.setting), "replicate": trial.replicate, "state": str(state)}
    return about | {"step": standing.step, "steps": trial.task["training"]["steps"], "train_loss": standing.loss}


def _seconds_left(trials: Sequence[Trial], standings: Mapping[str, Standing]) -> float | None:
    """The FLOPs still to do, at the speed of the ended trials, on as many slots as run now."""
    ended = {key: standing.record for key, standing in standings.items() if standing.record is not None}
    spent = sum(record.train_seconds for record in ended.values())
    done = sum(trial.cost_flops for trial in trials if trial.key in ended)
    slots = sum(standing.running for standing in standings.values())
    if not (spent and done and slots):
        return None
    remaining = 0.0
    for trial in trials:
        if trial.key not in ended:
            step = standings[trial.key].step if trial.key in standings else 0
            remaining += trial.cost_flops * (1 - step / trial.task["training"]["steps"])
    return remaining * spent / done / slots


def _lines(one: Mapping[str, Any]) -> list[str]:
    driver = one["driver"]
    who = "" if driver is None else f", pid {driver['pid']} on {driver['host']} since {driver['since']}"
    if one["state"] == StudyState.INTERRUPTED:
        who += " is dead: type the same command to go on"
    if one["state"] == StudyState.SILENT:
        beat = driver["beat"]
        who += f" can't be seen from here, its heart last beat at {beat}: if it is dead, type the same command"
    head = f"{one['label']}: {one['state']}{who}"
    if "trials" not in one:
        return [head]
    counts = ", ".join(f"{count} {state}" for state, count in one["states"].items())
    left = one["seconds_left"]
    lines = [head, f"  {one['trials']} trials: {counts}{'' if left is None else f', {show_seconds(left)} left'}"]
    if one["lowest"] is not None:
        lines.append(f"  lowest loss {one['lowest']['metric']:.4f} at {show_setting(one['lowest']['setting'])}")
    for trial in one["underway"]:
        loss = "" if trial["train_loss"] is None else f", training loss {trial['train_loss']:.4f}"
        what = f"{show_setting(trial['setting'])} seed {trial['replicate']}"
        lines.append(f"  {trial['state']} {what}: step {trial['step']} of {trial['steps']}{loss}")
    for trial in one["failed"]:
        what = f"{show_setting(trial['setting'])} seed {trial['replicate']}"
        lines.append(f"  failed {what}: {trial['error']}; muxfer retry {one['sweep']} --failed")
    for target in one["targets"]:
        loss = "" if target.get("metric") is None else f", validation loss {target['metric']:.4f}"
        lines.append(f"  target {target['key'][:8]}: {target['state']} at step {target['step']}{loss}")
    return lines
