"""Decide from the losses and gradient norms of training whether a run has diverged."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW_STEPS = 20
FACTOR = 2.0


class DivergenceDetector:
    """A run diverges at a loss or gradient norm that is not finite, or at a mean loss above twice the first loss. The
    mean is over the last 20 steps, all after warm-up. The first loss is that of step 0.
    """

    def __init__(self, *, warmup_steps: int) -> None:
        self._warmup_steps = warmup_steps
        self._first_loss: float | None = None
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)

    def diverges(self, step: int, *, loss: float, norm: float) -> bool:
        """Take in the numbers of a step, the steps in order. Says whether the run diverged at it."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return True
        if self._first_loss is None:
            self._first_loss = loss
        if step >= self._warmup_steps:
            self._recent.append(loss)
        return len(self._recent) == WINDOW_STEPS and sum(self._recent) / WINDOW_STEPS > FACTOR * self._first_loss

    def state(self) -> dict[str, Any]:
        return {"first_loss": self._first_loss, "recent": list(self._recent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._first_loss = state["first_loss"]
        self._recent = deque(state["recent"], maxlen=WINDOW_STEPS)
