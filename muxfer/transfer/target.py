"""Build the target's task from the winning setting, or refuse. Pure decisions: nothing is launched here.

Refused unless forced: trials that are still to run, no optimum or one at the edge of the grid, an optimum that drifts
along the axis, a loss of exactly 0. Refused always: a base width that is not the proxies'.

Not every setting transfers. A tuned setting, or one bound to the length of training, is carried, rescaled or left, as
`muxfer.config.settings.TRANSFER` declares. `Carried` says which and why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muxfer.analysis.cells import Best, shown
from muxfer.config.parse import parse_task
from muxfer.config.settings import AXES, SETTINGS, TRANSFER, place_of, value_of, with_setting
from muxfer.config.study import Config, Target
from muxfer.config.task import Task, to_plain
from muxfer.errors import BadInput
from muxfer.study.match import proxy_task
from muxfer.study.trials import make_trial
from muxfer.trial import Record, Study, Trial, Verdict, VerdictKind

Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class Carried:
    """How one setting went from the proxies (`value`) to the target (`target`). `how` is carried (unchanged), rescaled
    (to the target's length), left (it does not transfer: the target has the configured value) or given (by the user,
    target.NAME).
    """

    name: str
    value: Value
    target: Value
    how: str
    why: str


@dataclass(frozen=True, kw_only=True)
class TargetRun:
    """The large run. `task` is what it trains, `proxy` what the winner trained. `forced`: the overruled objections."""

    trial: Trial
    task: Task
    proxy: Task
    settings: tuple[Carried, ...]
    source: Study
    winner: Record
    proxy_metric: float
    forced: tuple[str, ...]

    @property
    def lineage(self) -> dict[str, Any]:
        """The origin, as the target's record has it."""
        return {
            "source_study": self.source.key,
            "source_sweep": self.source.name,
            "winning_trial": self.winner.key,
            "setting": dict(self.trial.setting),
            "forced": list(self.forced),
        }


def target_run(
    config: Config,
    study: Study,
    *,
    verdict: Verdict,
    best: Best | None,
    inside: bool,
    unfinished: int,
    fingerprint: str,
    num_pictures: int,
    force: bool = False,
) -> TargetRun:
    """The target's trial with the study's best base setting; BadInput where the study can't be transferred. `inside`:
    the optimum at the largest axis value lies inside the grid. `num_pictures`: the size of the training set. `force`
    overrules every objection but an empty study and another base width; `forced` keeps them.
    """
    if best is None:
        raise BadInput(f"study {study.label} has no finished trial: nothing to transfer; widen search.{verdict.hp}")
    objections = []
    if unfinished:
        objections.append(f"{unfinished} trials are still to run; run muxfer sweep {study.name}")
    sized_by_fit = verdict.axis == "flops"  # its optimum is a size, and is expected to grow with the budget
    if not inside and not sized_by_fit:
        objections.append(f"no finite optimum inside the grid ({verdict.why}); widen search.{verdict.hp}")
    if verdict.verdict is VerdictKind.DRIFTS and not sized_by_fit:
        objections.append(f"the optimum does not transfer ({verdict.why})")
    if best.records[0].metric == 0:
        objections.append(f"trial {best.records[0].key} has a loss of exactly 0, which no model has: look at its data")
    if objections and not force:
        raise BadInput(f"study {study.label} can't be transferred: {'; '.join(objections)}; or overrule with --force")
    base = proxy_task(config, study)
    _validate_base_width(base, config.target)
    winner = best.records[0]
    proxy = with_setting(base, best.setting)
    proxy = replace(proxy, training=replace(proxy.training, steps=winner.step))  # an isoFLOP budget sets the steps
    tuned = [name for name in best.setting if name not in AXES]
    sizes = [name for name in ("depth", "batch_size") if name in best.setting]
    settings = tuple(_carried(base, proxy, config.target, [*tuned, *sizes], num_pictures))
    task = _target_task(proxy, config.target, settings)
    setting = {name: value_of(task, name) for name in best.setting if name != verdict.axis and place_of(name)}
    forced = [
        f"target.{one.name} {value_text(one.target)} instead of the study's best {value_text(one.value)}"
        for one in settings
        if one.how == "given" and one.name == "base_lr"
    ]
    return TargetRun(
        trial=make_trial(task, setting, replicate=0, fingerprint=fingerprint, kind="target"),
        task=task,
        proxy=proxy,
        settings=settings,
        source=study,
        winner=winner,
        proxy_metric=best.metric,
        forced=(*objections, *forced),
    )


def _validate_base_width(base: Task, target: Target) -> None:
    if target.base_width is not None and target.base_width != base.model.base_width:
        differs = f"target.base_width {target.base_width} differs from the proxies' base width {base.model.base_width}"
        raise BadInput(f"{differs}: the scales would be others; leave it out")


def _target_task(proxy: Task, target: Target, settings: Sequence[Carried]) -> Task:
    plain = to_plain(proxy)
    given = {name: getattr(target, name) for name in ("width", "steps", "depth", "batch_size")}
    carried = {one.name: one.target for one in settings if one.name in SETTINGS}
    for name, value in (given | carried).items():
        if value is not None and (place := place_of(name)) is not None:
            plain[place[0]][place[1]] = value
    return parse_task(plain)


def _carried(base: Task, proxy: Task, target: Target, tuned: Sequence[str], num_pictures: int) -> Iterator[Carried]:
    """An entry for each tuned setting, then for settings bound to the horizon, then for regularization in use."""
    regularization = [name for name, kind in TRANSFER.items() if kind == "regularization" and value_of(proxy, name)]
    given = [name for name in TRANSFER if getattr(target, name, None) is not None]
    for name in dict.fromkeys([*tuned, "warmup_steps", "ema_fraction", *regularization, *given]):
        value, own = value_of(proxy, name), getattr(target, name, None)
        if own is not None:
            yield Carried(name=name, value=value, target=own, how="given", why=f"target.{name} says so")
        elif name in AXES:
            yield Carried(name=name, value=value, target=value, how="carried", why="the largest of the proxies")
        elif TRANSFER[name] == "carried":
            yield Carried(name=name, value=value, target=value, how="carried", why=_in_width(proxy, target))
        elif TRANSFER[name] == "horizon":
            yield _to_horizon(name, proxy.training.steps, target.steps, value)
        else:
            yield _regularization(name, base, proxy, target, num_pictures, tuned=name in tuned)
    schedule = proxy.training.schedule
    how, why = "carried", "constant: bound to no length"
    if schedule == "cosine":
        how, why = "rescaled", f"falls to 0 at step {target.steps}, at {proxy.training.steps} in the proxies"
    yield Carried(name="schedule", value=schedule, target=schedule, how=how, why=why)


def _in_width(proxy: Task, target: Target) -> str:
    parametrization = proxy.optimizer.parametrization
    scaled = parametrization in ("mup", "completep")
    why = f"{'transfers in width' if scaled else 'nothing says that it transfers'} under {parametrization}"
    depth, batch_size = proxy.model.depth, proxy.training.batch_size
    if target.depth not in (None, depth) and parametrization != "completep":
        why += f"; not known to transfer from depth {depth} to {target.depth}"
    if target.batch_size not in (None, batch_size):
        why += f"; tuned at batch size {batch_size}, the target has {target.batch_size}"
    return why


def _to_horizon(name: str, steps: int, target_steps: int, value: Value) -> Carried:
    """Warm-up keeps its share of the steps. The averaging window is such a share already."""
    assert not isinstance(value, str)
    if name == "ema_fraction":
        window, longer = (f"{value * num:.3g}" for num in (steps, target_steps))
        why = f"a share of the steps already: its time constant of {window} steps becomes {longer}"
        return Carried(name=name, value=value, target=value, how="carried", why=why)
    if value == 0 or steps == target_steps:
        why = "there is none" if value == 0 else f"both train {steps} steps"
        return Carried(name=name, value=value, target=value, how="carried", why=why)
    why = f"bound to the length of training: {100 * value / steps:.3g} % of {steps} steps, and of {target_steps}"
    return Carried(name=name, value=value, target=max(1, round(value / steps * target_steps)), how="rescaled", why=why)


def _regularization(name: str, base: Task, proxy: Task, target: Target, num_pictures: int, *, tuned: bool) -> Carried:
    """The best amount depends on how often the data are seen: it is carried where no run sees them twice."""
    value = value_of(proxy, name)
    seen = proxy.training.steps * proxy.training.batch_size / num_pictures
    target_seen = target.steps * (target.batch_size or proxy.training.batch_size) / num_pictures
    often = f"the proxies see the data {seen:.3g} times, the target {target_seen:.3g} times"
    if max(seen, target_seen) <= 1:
        return Carried(name=name, value=value, target=value, how="carried", why=f"{often}: never twice")
    if not tuned:
        why = f"as configured, not tuned; {often}: another value may be better, target.{name}=VALUE"
        return Carried(name=name, value=value, target=value, how="carried", why=why)
    own = value_of(base, name)
    why = f"{often}, and its best value depends on that: as configured instead, or target.{name}=VALUE"
    return Carried(name=name, value=value, target=own, how="left", why=why)


def value_text(value: Value) -> str:
    return value if isinstance(value, str) else shown(value)
