"""The target's loss band, predicted from the proxies' curves. The target's job carries it to wherever it trains.

`muxfer.analysis.loss_band` fits the band and says when a loss leaves it. This module selects the proxies whose curves
predict this target. Without any, the target is not watched, and the reason is reported.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from muxfer.analysis.loss_band import MIN_REPORTS, LossBand, LossCurve, loss_band
from muxfer.config.settings import SETTINGS, value_of, with_setting
from muxfer.config.task import Task
from muxfer.executors.base import Executor, TrialJob
from muxfer.transfer.target import TargetRun
from muxfer.trial import Point, Record

AT_MOST = ("width", "depth", "batch_size")
AT_LEAST = ("weight_decay", "label_dropout")
"""A proxy predicts a target that is at least as large and at most as regularized. Such a target's loss is expected to
be lower, whatever else changes."""


def target_band(
    target: TargetRun, base: Task, records: Sequence[Record], curves: Mapping[str, Sequence[Point]], *, axis: str
) -> LossBand | str:
    """The target's band, from the finished proxies at the chosen setting, at every value of the axis and every seed.
    `base` is the task that the study varies. `curves` are training losses by trial key. A text says why there is none.
    """
    chosen = {name: value for name, value in target.winner.setting.items() if name != axis}
    selected: list[LossCurve] = []
    difference = ""
    for record in records:
        if record.metric is None or {n: v for n, v in record.setting.items() if n != axis} != chosen:
            continue
        proxy = with_setting(base, record.setting)
        proxy = replace(proxy, training=replace(proxy.training, steps=record.step))
        if differs := _difference(proxy, target.task):
            difference = difference or differs
            continue
        points = [(point.step, point.value) for point in curves.get(record.key, ()) if point.name == "train_loss"]
        selected.append(LossCurve(size=float(record.setting[axis]), points=points, rates=_rates(proxy)))
    if not selected:
        return difference or "no proxy finished at the chosen setting"
    band = loss_band(
        selected,
        size=float(value_of(target.task, axis)) if axis in AT_MOST else math.inf,
        rates=_rates(target.task),
        speed=target.task.optimizer.base_lr / target.proxy.optimizer.base_lr,
        trend=axis in AT_MOST,
    )
    few = f"the proxies' curves have fewer than {2 * MIN_REPORTS} points: lower training.report_every"
    return few if band is None else band


class Watched:
    """An executor whose jobs carry a band. None: the target is not watched."""

    def __init__(self, executor: Executor, band: LossBand | None) -> None:
        self._executor, self.slots = executor, executor.slots
        self.updates, self.close, self.kill = executor.updates, executor.close, executor.kill
        self._band = None if band is None else band.to_dict()

    def submit(self, jobs: Sequence[TrialJob]) -> None:
        self._executor.submit([replace(job, band=self._band) for job in jobs])


def _difference(proxy: Task, target: Task) -> str:
    """Why a proxy does not predict a target; empty where it does."""
    for sign, names in ((1, AT_MOST), (-1, AT_LEAST)):
        for name in names:
            own, its = value_of(proxy, name), value_of(target, name)
            if sign * own > sign * its:
                why = f"says that its loss may be above that of the proxies, with {own:g}"
                return f"the target's {SETTINGS[name]} {its:g} {why}"
    return ""


def _rates(task: Task) -> list[float]:
    """The schedule's multiplier at each step."""
    from muxfer.training.optim import rate_multiplier

    return [rate_multiplier(task.training, step) for step in range(task.training.steps)]
