"""Losses that are NaN, infinite or exactly 0. Each becomes an outcome, and no target starts from such a trial.

Values are put into the losses and gradients of the real training loop. The study on SQLite, its verdict, its page and
its transfer are real too. One study diverges through its learning rates alone, and runs through the command.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.harness.refusals import refusal
from benchmarks.faults.harness.sweep import Sweep, new_folder, runs_of
from muxfer.commands import transfer as launch
from muxfer.commands.report import report
from muxfer.commands.verdict import verdict
from muxfer.executors.base import TrialJob
from muxfer.executors.inline import InlineExecutor
from muxfer.executors.worker import TrialRun
from muxfer.study.resolve import resolve
from muxfer.study.retention import plan_retention
from muxfer.study.rounds import proposing
from muxfer.study.session import drive
from muxfer.study.trials import grid_trials
from muxfer.trial import Outcome, Record

STEPS = 24
STUDY = (
    *(
        "search.width=[16]",
        "search.base_lr=[2**-8,2**-7,2**-6]",
        "model.base_width=16",
        "model.depth=1",
        "model.patch=4",
    ),
    *(f"training.steps={STEPS}", "training.warmup_steps=2", "training.batch_size=8", "training.checkpoint_every=8"),
    *("training.report_every=4", "evaluation.timesteps=2"),
)
TOO_HIGH = (*(word for word in STUDY if "base_lr" not in word and "steps=" not in word), "search.base_lr=[1,4,16]")
"""At these rates every trial diverges from its first loss. The default number of steps is enough to see it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A factor of the loss or of the gradient of one trial of a study, or of `every` one, from a step on.

    The step is drawn from `steps`. From STEPS on it changes only the validation.
    """

    value: float
    steps: range
    every: bool = False
    gradient: bool = False


_injected: dict[str, tuple[Kind, int]] = {}
"""By trial key, what the worker in this process puts into that trial, and from which step on."""


class Injected(TrialRun):
    """The real worker, with a value put into its losses or gradients."""

    def __init__(self, job: TrialJob) -> None:
        super().__init__(job)
        if job.trial.key not in _injected:
            return
        kind, at = _injected[job.trial.key]
        trainer = self.trainer
        if kind.gradient:
            parameter = next(iter(trainer.model.parameters()))
            parameter.register_hook(lambda grad: grad * (kind.value if trainer.step >= at else 1.0))
            return
        losses = trainer._losses

        def changed(*arguments: Any) -> Any:
            result = losses(*arguments)
            return result * kind.value if trainer.step >= at else result

        trainer._losses = changed  # type: ignore[method-assign, assignment]


EARLY, LATE, FROM_THE_FIRST, AFTER_THE_LAST = range(1, 8), range(8, STEPS), range(1), range(STEPS, STEPS + 1)
KINDS: Mapping[str, Kind | None] = {
    "NaN": Kind(value=math.nan, steps=LATE),
    "an infinite loss": Kind(value=math.inf, steps=EARLY),
    "a NaN gradient of a finite loss": Kind(value=math.nan, steps=LATE, gradient=True),
    "NaN in the validation alone": Kind(value=math.nan, steps=AFTER_THE_LAST),
    "NaN at the first step": Kind(value=math.nan, steps=FROM_THE_FIRST),
    "every loss NaN": Kind(value=math.nan, steps=EARLY, every=True),
    "every loss infinite": Kind(value=math.inf, steps=LATE, every=True),
    "a loss of exactly 0": Kind(value=0.0, steps=FROM_THE_FIRST),
    "every loss exactly 0": Kind(value=0.0, steps=FROM_THE_FIRST, every=True),
    "every rate too high": None,
}
"""By name. None: nothing is put in, because the learning rates alone make the trials diverge."""


def losses(seed: int, folder: Path, faults: int) -> int:
    """One study a fault, all in one ledger. The kinds take turns, from the seed's on."""
    for number in range(faults):
        name = list(KINDS)[(seed + number) % len(KINDS)]
        if (kind := KINDS[name]) is None:
            _rates_too_high(Sweep(new_folder(folder), TOO_HIGH))
        else:
            with chdir(folder):
                _study((*STUDY, f"training.seed={number}"), kind, random.Random(f"{seed} {number}"), name)
    return faults


def _study(overrides: tuple[str, ...], kind: Kind, rng: random.Random, name: str) -> None:
    """Train, check the database, run the sweep again, judge, report, and try to transfer."""
    request = resolve("lr-width", overrides)
    trials = grid_trials(request.config, fingerprint=request.fingerprint)
    hit = trials if kind.every else [rng.choice(trials)]
    injected = {trial.key: (kind, rng.choice(kind.steps)) for trial in hit}
    records, ran = _drive(overrides, injected)
    assert ran == len(records) == len(trials)
    runs = runs_of(Path("mlflow.db"))
    for key, record in records.items():
        _assert_outcome(name, record, injected.get(key))
        assert runs[key].status == "FINISHED", f"{name}: trial {key} has the status {runs[key].status}"
        assert all(math.isfinite(value) for _, _, value in runs[key].points), f"{name}: a point is not finite"
    assert _drive(overrides, {}) == (records, 0), f"{name}: a finished trial was run again"
    assert verdict("lr-width", overrides).data["verdict"] == "abstains"  # there is only one width
    assert "</html>" in Path(report("lr-width", overrides).data["report"]).read_text()
    taken: list[str] = []
    transfer = partial(launch.transfer, "lr-width", overrides, print_line=print, dry_run=True)
    why = refusal(lambda: taken.append(transfer().data["source"]["trial"]))
    winner, reason = _winner(list(records.values()))
    shown = f"{name}: took {taken}, expected {winner or reason}: {why}"
    assert taken == ([winner] if winner else []), shown
    assert reason in why, shown


def _winner(records: Sequence[Record]) -> tuple[str, str]:
    """The key of the trial that `transfer` must take, or the reason why it takes none.

    It takes the finished trial with the lowest loss. A diverged trial bounds the grid, so the rate beside it may win.
    """
    row = sorted(records, key=lambda record: record.setting["base_lr"])
    finished = [(record.metric, record) for record in row if record.metric is not None]
    if not finished:
        return "", "has no finished trial: nothing to transfer"
    metric, lowest = min(finished, key=lambda pair: pair[0])
    if metric == 0:
        return "", "has a loss of exactly 0"
    if lowest in (row[0], row[-1]):
        return "", "can't be transferred: no finite optimum inside the grid"
    return lowest.key, ""


def _assert_outcome(name: str, record: Record, injected: tuple[Kind, int] | None) -> None:
    shown = f"{name}: {record.outcome} at step {record.step}, metric {record.metric}"
    if injected is None:
        assert record.outcome is Outcome.FINISHED, shown
        assert record.metric is not None, shown
        assert record.metric > 0, shown
    elif injected[0].value == 0:
        assert (record.outcome, record.metric, record.step) == (Outcome.FINISHED, 0.0, STEPS), shown
    else:
        assert (record.outcome, record.metric, record.step) == (Outcome.DIVERGED, None, injected[1]), shown


def _drive(overrides: tuple[str, ...], injected: Mapping[str, tuple[Kind, int]]) -> tuple[dict[str, Record], int]:
    """Run a sweep up to its records, without Ray and without the page. Returns the records and how many were new."""
    torch.set_num_threads(1)
    _injected.clear()
    _injected.update(injected)
    request = resolve("lr-width", overrides)
    propose = proposing(request.config, fingerprint=request.fingerprint)
    with drive(request) as session:
        before = session.records()
        trials = request.files.path / "trials"
        retention = plan_retention(request.config, propose([]), folder=trials, print_line=lambda line: None)
        start = partial(InlineExecutor, worker=f"{Injected.__module__}:{Injected.__name__}")
        ran = session.run(propose(before), before, start_executor=start, more=propose, retention=retention)
        session.ledger.flush(60)
        return {record.key: record for record in session.records()}, len(ran.records)


def _rates_too_high(sweep: Sweep) -> None:
    """Every trial diverges by its rate. The sweep ends with 0 and no best trial, `transfer` with 2 and the reason."""
    result = sweep.finish()
    assert {trial["outcome"] for trial in result["trials"]} == {"diverged"}, result["trials"]
    assert (result["best"], result["verdict"]["verdict"]) == (None, "abstains")
    refused = sweep.run(command="transfer").expect(2)
    assert "has no finished trial: nothing to transfer" in refused.last_line, refused.err[-2000:]
    assert sweep.finish()["ran"] == 0
    sweep.assert_clean()
