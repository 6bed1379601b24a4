"""A folder with recorded studies and a target, for the tests of the export command."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from muxfer.commands.export import export
from muxfer.commands.transfer import transfer
from muxfer.executors.inline import InlineExecutor
from muxfer.study.resolve import resolve
from muxfer.study.session import drive, open_ledger
from muxfer.study.trials import grid_trials
from muxfer.trial import Outcome, Record
from tests.small_sweeps import TARGET, TINY

SMALL = [*TINY, "model.depth=2", "training.steps=20", "training.warmup_steps=2", "training.batch_size=16"]
SMALL += ["training.checkpoint_every=10", "training.ema_fraction=0.5", "evaluation.timesteps=2"]
DIT = [*SMALL, "model.frequency_shift=1", "search.base_lr=[2**-6,2**60]"]
PIXART = [*SMALL, "model=pixart", "model.text_dim=12"]
DECLARED = [*SMALL, "model=diffusers_pixart", "model.text_dim=12"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A folder with four studies and a target, and the records of what was trained in it."""

    folder: Path
    dit: Record
    diverged: Record
    pixart: Record
    declared: Record
    other_timesteps: Record
    target: Record


def train(*overrides: str, lost: Mapping[str, str] | None = None) -> dict[Outcome, Record]:
    """Train a sweep of lr-width in this process, and return its records by outcome.

    `lost` has keys of trials that are recorded as well, each with a checkpoint that is not on this host.
    """
    resolved = resolve("lr-width", overrides)
    with drive(resolved) as session:
        trials = grid_trials(resolved.config, fingerprint=resolved.fingerprint)
        ran = session.run(trials, start_executor=InlineExecutor)
        finished = next(record for record in ran.records if record.outcome is Outcome.FINISHED)
        for key, checkpoint in (lost or {}).items():
            session.ledger.begin(replace(trials[0], key=key))
            session.ledger.settle(replace(finished, key=key, checkpoint=checkpoint))
        session.ledger.flush(60)
        keys = {trial.key for trial in trials}
        return {record.outcome: record for record in session.records() if record.key in keys}


def train_all(folder: Path) -> Trained:
    """Train the four studies and the target in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        lost = {key: f"/elsewhere/study/trials/{key}/attempt/step" for key in ("lost0", "lost1")}
        wrong = {"wrong0": "x", "wrong1": "/" + "x/" * 3000, "wrong2": "/home/trials/lost0/attempt/step"}
        dit = train(*DIT, lost={**lost, **wrong})
        pixart = train(*PIXART)
        declared = train(*DECLARED)
        other = train(*SMALL)
        launched = transfer("lr-width", [*DIT, *TARGET], print_line=print, force=True).data
        resolved = resolve("lr-width", DIT)
        with open_ledger(resolved) as ledger:
            [target] = [record for record in ledger.records(resolved.study) if record.kind == "target"]
        assert launched["run_id"] == target.run_id
    return Trained(
        folder=folder,
        dit=dit[Outcome.FINISHED],
        diverged=dit[Outcome.DIVERGED],
        pixart=pixart[Outcome.FINISHED],
        declared=declared[Outcome.FINISHED],
        other_timesteps=other[Outcome.FINISHED],
        target=target,
    )


def exported(run: str, folder: Path | None = None) -> dict[str, Any]:
    """Export a run for diffusers from the current folder, and return the command's JSON."""
    return dict(export(run, [], to="diffusers", folder=None if folder is None else str(folder)).data)
