"""From a judged study to the target's run: pure decisions, nothing is launched here.

Refused unless forced: a study with trials still to run, an optimum at the edge of the grid or none at all, one that
drifts along the axis.
Refused always: a target whose base width is not its proxies'. Its base depth can't be said: it is the proxies'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muxfer.analysis.transferability import Best
from muxfer.config import SETTINGS, Config, Target, Task, to_plain
from muxfer.errors import BadInput
from muxfer.parse import parse_task
from muxfer.plan import make_trial
from muxfer.trial import Record, Study, Trial, Verdict

UNSAID = ("data_fingerprint", "numerics")
"""What tells two studies apart and no override can say: of those that fit, the ones of today's are meant."""


@dataclass(frozen=True, kw_only=True)
class TargetRun:
    """The large run and where it comes from; `forced` lists the objections that were overruled."""

    trial: Trial
    source: Study
    winner: Record
    proxy_metric: float
    forced: tuple[str, ...]

    @property
    def lineage(self) -> dict[str, Any]:
        """What the target's record says of its origin."""
        return {
            "source_study": self.source.key,
            "source_sweep": self.source.name,
            "winning_trial": self.winner.key,
            "setting": dict(self.trial.setting),
            "forced": list(self.forced),
        }


def studies_that_fit(studies: Sequence[Study], wanted: Study, overridden: Sequence[str]) -> list[Study]:
    """The studies that agree with the wanted one on every key that the user's overrides name."""
    want = _flat(wanted.identity)

    def fits(study: Study) -> bool:
        have = _flat(study.identity)
        named = [key for key in {*want, *have} if any(key == name or key.startswith(f"{name}.") for name in overridden)]
        return all(want.get(key) == have.get(key) for key in named)

    return [study for study in studies if fits(study)]


def the_study(studies: Sequence[Study], wanted: Study, overridden: Sequence[str]) -> Study:
    """The one study that was meant. BadInput when none fits, or when two do (it says in which keys they differ)."""
    fitting = studies_that_fit(studies, wanted, overridden)
    of_today = [study for study in fitting if all(study.identity[key] == wanted.identity[key] for key in UNSAID)]
    fitting = of_today or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        told = f" with {' '.join(overridden)}" if overridden else ""
        known = f"; recorded: {', '.join(study.label for study in studies)}" if studies else ""
        raise BadInput(f"no study {wanted.name}{told} in this ledger{known}; run muxfer sweep {wanted.name} first")
    flat = [_flat(study.identity) for study in fitting]
    differing = sorted(key for key in set().union(*flat) if len({str(one.get(key)) for one in flat}) > 1)
    groups = [key for key in differing if key.endswith(".name")]
    key = next((key for key in groups or differing if key not in UNSAID), None)
    if key is None:
        raise BadInput(f"{len(fitting)} studies of {wanted.name} fit, made with other data: give the sweep's data=...")
    said = key.removesuffix(".name")
    choices = " or ".join(sorted({f"{said}={one.get(key)}" for one in flat}))
    raise BadInput(f"{len(fitting)} studies of {wanted.name} fit; say which one: {choices}")


def proxy_task(config: Config, study: Study) -> Task:
    """The task that the study trained: its own identity, and from `config` only what no key holds."""
    plain = to_plain(config.task)
    merged = {group: {**plain[group], **study.identity.get(group, {})} for group in plain}
    for group in ("data", "objective"):  # another variant's keys must not survive in these
        own = study.identity[group]
        merged[group] = {**({} if plain[group]["name"] != own["name"] else plain[group]), **own}
    return parse_task(merged)


def target_run(
    config: Config,
    study: Study,
    *,
    verdict: Verdict,
    best: Best | None,
    inside: bool,
    unfinished: int,
    fingerprint: str,
    force: bool = False,
) -> TargetRun:
    """The target's trial with the study's best base setting, or BadInput with the reason why not.

    `inside`: the optimum at the largest axis value lies inside the grid. `force` overrules all but an empty study and
    another base width; the lineage says what it overruled.
    """
    if best is None:
        raise BadInput(f"study {study.label} has no finished trial: nothing to transfer; widen search.{verdict.hp}")
    objections = []
    if unfinished:
        objections.append(f"{unfinished} trials are still to run; run muxfer sweep {study.name}")
    if not inside:
        objections.append(f"no finite optimum inside the grid ({verdict.why}); widen search.{verdict.hp}")
    if verdict.verdict == "drifts":
        objections.append(f"the optimum does not transfer ({verdict.why})")
    if objections and not force:
        raise BadInput(f"study {study.label} can't be transferred: {'; '.join(objections)}; or overrule with --force")
    base = proxy_task(config, study)
    setting = {name: value for name, value in best.setting.items() if name != verdict.axis}
    task = _target_task(base, config.target, setting)
    trial = make_trial(task, setting, replicate=0, fingerprint=fingerprint, kind="target")
    return TargetRun(
        trial=trial, source=study, winner=best.records[0], proxy_metric=best.metric, forced=tuple(objections)
    )


def _target_task(base: Task, target: Target, setting: Mapping[str, Any]) -> Task:
    if target.base_width is not None and target.base_width != base.model.base_width:
        raise BadInput(
            f"target.base_width {target.base_width} differs from the proxies' base width {base.model.base_width}:"
            " the scales would be others; leave it out"
        )
    plain = to_plain(base)
    for name, value in setting.items():
        group, key = SETTINGS[name].split(".")
        plain[group][key] = value
    plain["model"]["width"] = target.width
    plain["training"]["steps"] = target.steps
    if target.depth is not None:
        plain["model"]["depth"] = target.depth
    if target.batch_size is not None:
        plain["training"]["batch_size"] = target.batch_size
    return parse_task(plain)


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
