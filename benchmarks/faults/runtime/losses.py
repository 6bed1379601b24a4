"""Losses that are no numbers, and one that is exactly 0: each becomes an outcome, and no target is launched from none.

Values are put into the real training loop's losses and gradients; all around it is real too: a study on SQLite, its
verdict, its page, its transfer. One study diverges by its learning rates alone, through the command.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.harness.database import runs_of
from benchmarks.faults.harness.refusals import refusal
from benchmarks.faults.harness.sweep import Sweep, new_folder
from muxfer.executors.base import TrialJob
from muxfer.executors.worker import TrialRun
from muxfer.trial import Outcome, Record

STEPS = 24
STUDY = (
    "search.width=[16]",
    "search.base_lr=[2**-8,2**-7,2**-6]",
    "model.base_width=16",
    "model.depth=1",
    "model.patch=4",
    f"training.steps={STEPS}",
    "training.warmup_steps=2",
    "training.batch_size=8",
    "training.checkpoint_every=8",
    "training.report_every=4",
    "evaluation.timesteps=2",
)
TOO_HIGH = (*(word for word in STUDY if "base_lr" not in word and "steps=" not in word), "search.base_lr=[1,4,16]")
"""Rates at which each trial leaves its first loss behind, and steps enough to see it."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """`value` times the loss, or the gradient, of every step from `at` on; at STEPS only the validation has it."""

    value: float
    at: int
    gradient: bool = False


_injected: dict[str, Value] = {}
"""By trial key: what the worker, in this process, puts into that trial."""


class Injected(TrialRun):
    """The worker that trains, with a value put into its losses."""

    def __init__(self, job: TrialJob) -> None:
        super().__init__(job)
        if (value := _injected.get(job.trial.key)) is None:
            return
        trainer = self.trainer
        if value.gradient:
            parameter = next(iter(trainer.model.parameters()))
            parameter.register_hook(lambda grad: grad * (value.value if trainer.step >= value.at else 1.0))
            return
        losses = trainer._losses

        def of_step(*given: Any) -> Any:
            found = losses(*given)
            return found * value.value if trainer.step >= value.at else found

        trainer._losses = of_step  # type: ignore[method-assign, assignment]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is put into one trial of a study, or into every one, from a step on that is drawn from `steps`."""

    value: float
    steps: range
    every: bool = False
    gradient: bool = False


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
"""None: nothing is put in, the rates do it."""


def losses(seed: int, folder: Path, faults: int) -> int:
    """One study a fault, all in one ledger: the kinds in turn, from that of the seed on."""
    for number in range(faults):
        name = list(KINDS)[(seed + number) % len(KINDS)]
        if (kind := KINDS[name]) is None:
            _rates_too_high(Sweep(new_folder(folder, number), TOO_HIGH))
        else:
            with chdir(folder):
                _study((*STUDY, f"training.seed={number}"), kind, random.Random(f"{seed} {number}"), name)
    return faults


def _study(overrides: tuple[str, ...], kind: Kind, rng: random.Random, name: str) -> None:
    """Train, look into the database, type it again, judge, report, and try to transfer."""
    from muxfer.commands import transfer as launch
    from muxfer.commands.report import report
    from muxfer.commands.verdict import verdict
    from muxfer.study.resolve import resolve
    from muxfer.study.trials import grid_trials

    request = resolve("lr-width", overrides)
    trials = grid_trials(request.config, fingerprint=request.fingerprint)
    hit = trials if kind.every else [rng.choice(trials)]
    values = {t.key: Value(value=kind.value, at=rng.choice(kind.steps), gradient=kind.gradient) for t in hit}
    records, ran = _drive(overrides, values)
    assert ran == len(records) == len(trials)
    runs = runs_of(Path("mlflow.db"))
    for key, record in records.items():
        _check(name, record, values.get(key))
        assert runs[key].status == "FINISHED", f"{name}: trial {key} stands as {runs[key].status}"
        assert all(math.isfinite(value) for _, _, value in runs[key].points), f"{name}: a point is not finite"
    assert _drive(overrides, {}) == (records, 0), f"{name}: what is settled was run again"
    assert verdict("lr-width", overrides).data["verdict"] == "abstains"  # of a single width
    assert "</html>" in Path(report("lr-width", overrides).data["report"]).read_text()
    taken: list[str] = []

    def transfer() -> None:
        answer = launch.transfer("lr-width", overrides, print_line=print, dry_run=True)
        taken.append(answer.data["source"]["trial"])

    why = refusal(transfer)
    winner, reason = _winner(list(records.values()))
    told = f"{name}: took {taken}, expected {winner or reason}: {why}"
    assert taken == ([winner] if winner else []), told
    assert reason in why, told


def _winner(records: Sequence[Record]) -> tuple[str, str]:
    """The key of the trial that `transfer` must take, the lowest that finished; or the reason for which it takes none.

    One that diverged bounds the grid: the rate beside it may be the best.
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


def _check(name: str, record: Record, value: Value | None) -> None:
    told = f"{name}: {record.outcome} at step {record.step}, metric {record.metric}"
    if value is None:
        assert record.outcome is Outcome.FINISHED, told
        assert record.metric is not None, told
        assert record.metric > 0, told
    elif value.value == 0:
        assert (record.outcome, record.metric, record.step) == (Outcome.FINISHED, 0.0, STEPS), told
    else:
        assert (record.outcome, record.metric, record.step) == (Outcome.DIVERGED, None, value.at), told


def _drive(overrides: tuple[str, ...], values: Mapping[str, Value]) -> tuple[dict[str, Record], int]:
    """The sweep as far as its records: all of it but Ray and the page."""
    import torch

    from muxfer.config.task import to_plain
    from muxfer.executors.inline import InlineExecutor
    from muxfer.study.loop import run_study
    from muxfer.study.progress import Progress
    from muxfer.study.resolve import resolve
    from muxfer.study.retention import planned
    from muxfer.study.rounds import proposing
    from muxfer.study.session import driving, open_ledger

    torch.set_num_threads(1)
    _injected.clear()
    _injected.update(values)
    request = resolve("lr-width", overrides)
    propose = proposing(request.config, fingerprint=request.fingerprint)
    with open_ledger(request) as ledger, driving(request, request.study, ledger, to_plain(request.config)) as lease:
        before = ledger.records(request.study)
        ran = run_study(
            propose(before),
            before,
            study=request.study,
            ledger=ledger,
            lease=lease,
            start_executor=lambda: InlineExecutor(worker=f"{Injected.__module__}:{Injected.__name__}"),
            folder=request.folder,
            progress=Progress(),
            more=propose,
            retention=planned(
                request.config, propose([]), folder=request.home / "trials", print_line=lambda line: None
            ),
        )
        ledger.flush(60)
        return {record.key: record for record in ledger.records(request.study)}, len(ran.records)


def _rates_too_high(sweep: Sweep) -> None:
    """Every trial diverges by its rate: the command ends with 0 and no best, and `transfer` with 2 and the reason."""
    answer = sweep.finish()
    assert {trial["outcome"] for trial in answer["trials"]} == {"diverged"}, answer["trials"]
    assert (answer["best"], answer["verdict"]["verdict"]) == (None, "abstains")
    refused = sweep.run(command="transfer").expect(2)
    assert "has no finished trial: nothing to transfer" in refused.last_line, refused.err[-2000:]
    assert sweep.finish()["ran"] == 0
    sweep.nothing_left()
