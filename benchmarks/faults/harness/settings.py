"""Settings that the rows share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BRIEF = "MUXFER_FAULTS_BRIEF"
"""Set where the test suite asks: its sweeps are smaller, and where a row names a brief case it has that."""
CHECKPOINT_EVERY = 10
STEPS = 60
GRID = (
    f"search.width={'[16]' if BRIEF in os.environ else '[16,32]'}",
    "search.base_lr=[2**-8,2**-6,2**-1]",
    "model.base_width=32",
    "model.depth=1",
    "model.patch=4",
    f"training.steps={STEPS}",
    "training.batch_size=32",
    f"training.checkpoint_every={CHECKPOINT_EVERY}",
    "evaluation.timesteps=2",
)
"""Six small trials (three in the tests), of which some diverge: nothing else is smaller than life."""
ADAPTIVE = (
    *(override for override in GRID if not override.startswith("search.")),
    "search.width=[16]",
    "search.base_lr={uniform:[-9,-3],log2:true}",
    "search.sampler=tpe",
    "search.num_settings=6",
    "search.round_size=3",
)
"""A search that learns: its second round depends on what the first one found."""
IDENTITY: Mapping[str, Any] = {
    "model": {"family": "dit"},
    "data": {"name": "digits"},
    "objective": {"name": "ddpm"},
    **{group: {} for group in ("optimizer", "training", "evaluation")},
    "data_fingerprint": "0" * 16,
    "numerics": 1,
}
"""The least that a study's identity holds."""
CACHE = "MUXFER_FAULTS_CACHE"
"""Where the uninterrupted sweeps' results lie, so that one run of the bench makes each once."""
SETTLE_SECONDS = 20.0
"""How long processes may take to follow a driver that was killed."""
