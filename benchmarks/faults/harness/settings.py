"""The type of a case, the sweeps that cases train, and the environment variables by which the gate speaks to a case."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Case = Callable[[int, Path, int], int]
"""`case(seed, empty folder, faults)` causes that many faults and returns how many it caused.

It raises AssertionError where the promise is broken.
"""
ROOT = Path(__file__).resolve().parents[3]
BRIEF = "MUXFER_FAULTS_BRIEF"
"""The test suite sets this variable: sweeps are smaller, and a row with a brief case runs that one."""
CACHE = "MUXFER_FAULTS_CACHE"
"""The folder for the results of uninterrupted sweeps. One run of the bench makes each result once."""
CHECKPOINT_EVERY = 10
STEPS = 60
GRID = (
    *(f"search.width={'[16]' if BRIEF in os.environ else '[16,32]'}", "search.base_lr=[2**-8,2**-6,2**-1]"),
    *("model.base_width=32", "model.depth=1", "model.patch=4", f"training.steps={STEPS}", "training.batch_size=32"),
    *(f"training.checkpoint_every={CHECKPOINT_EVERY}", "evaluation.timesteps=2"),
)
"""Six small trials (three in the tests). Some of them diverge. Only the trials are small; all else is real."""
ADAPTIVE = (
    *(override for override in GRID if not override.startswith("search.")),
    *("search.width=[16]", "search.base_lr={uniform:[-9,-3],log2:true}"),
    *("search.sampler=tpe", "search.num_settings=6", "search.round_size=3"),
)
"""An adaptive search: its second round depends on the results of the first."""
IDENTITY: Mapping[str, Any] = {
    "model": {"family": "dit"},
    "data": {"name": "digits"},
    "objective": {"name": "ddpm"},
    **{group: {} for group in ("optimizer", "training", "evaluation")},
    "data_fingerprint": "0" * 16,
    "numerics": 1,
}
"""The smallest identity that a study can have."""
SETTLE_SECONDS = 20.0
"""How long processes may take to end after their driver was killed."""
