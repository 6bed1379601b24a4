"""`muxfer plan`: what a study costs before anything runs, and which proxies a budget pays for.

Models are counted on the meta device, each once. Hours come only from what the ledger has measured. No ledger is made.
Data that are only described, and not there, are not read.
"""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from muxfer.commands.result import CommandResult
from muxfer.config.settings import place_of, value_of, with_setting
from muxfer.config.study import Config, StudyKind
from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.models.count import Measure, counter
from muxfer.report.plan_text import plan_lines, proposal_lines
from muxfer.study import cost
from muxfer.study import trials as planning
from muxfer.study.resolve import Request, resolve
from muxfer.study.search import grid
from muxfer.study.speeds import hours_at, speeds_of
from muxfer.trial import Setting

SAME_COUNT = 1.25
"""A paper's own parameter count is used for models whose count is within this factor of it: not for other widths."""
HEADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Proposed widths, in heads. Two neighbours differ by a third or a half."""
MAX_PROPOSALS = 8


def plan(name: str, overrides: Sequence[str], *, budget: float | None = None) -> CommandResult:
    """Trials, FLOPs, shares of the target and hours of a study, and with a budget the proxies that stay below it."""
    request = resolve(name, overrides, planned=True)
    if budget is not None and not 0 < budget < 1:
        raise BadInput(f"--budget {budget:g}: expected a share of the target's FLOPs between 0 and 1, such as 0.05")
    planning.validate_search(request.config)
    data, why = costs(request)
    lines = plan_lines(data, why)
    if budget is not None:
        count = counter(request.config)
        proposals = _proposals(request.config, _target(request.config), budget, count)
        command = shlex.join(["muxfer", "sweep", name, *overrides])
        rows = [_proposal(proposal, request.config, command, count) for proposal in proposals[:MAX_PROPOSALS]]
        data |= {"budget": budget, "proposals": rows}
        lines += ["", *proposal_lines(rows, budget)]
    return CommandResult(data=data, text="\n".join(lines))


def costs(request: Request) -> tuple[dict[str, Any], str]:
    """The cost of a study and its target, as the command's JSON, and the reason why hours are unknown, or ""."""
    count = counter(request.config)
    target = _target(request.config)
    proxies = cost.parts(request.config.task, request.config.search, _settings(request.config, count))
    flops = [part.trials * _flops(part.task, count) for part in proxies]
    target_flops = _flops(target, count)
    speeds, why = speeds_of(request, count)
    hours = [hours_at(spent, count(part.task.model).macs, speeds) for spent, part in zip(flops, proxies, strict=True)]
    target_hours = hours_at(target_flops, count(target.model).macs, speeds)
    data: dict[str, Any] = {
        "sweep": request.name,
        "study": request.study.key,
        "trials": sum(part.trials for part in proxies),
        "proxy_flops": sum(flops),
        "target_flops": target_flops,
        **_ratios(request.config, proxies, target, count),
        "tuning_ratio_flops": sum(flops) / target_flops,
        "hours": None if None in hours else sum(spent for spent in hours if spent is not None),
        "target_hours": target_hours,
        "sizes": [
            {
                "setting": dict(part.sizes),
                "parameters": count(part.task.model).parameters,
                "macs": count(part.task.model).macs,
                "flops": spent / part.trials,
                "trials": part.trials,
                "hours": time,
            }
            for part, spent, time in zip(proxies, flops, hours, strict=True)
        ],
        "target": {name: value_of(target, name) for name in ("width", "depth", "steps", "batch_size")}
        | {"parameters": count(target.model).parameters},
    }
    return data, why


def _settings(config: Config, count: Measure) -> list[Setting]:
    if config.search.kind is not StudyKind.ISOFLOP:
        return grid(config.search)
    from muxfer.study.isoflop import isoflop_settings

    return list(isoflop_settings(config.search, config.task, count))


def _target(config: Config) -> Task:
    """The target's task, as far as it decides the cost. The tuned setting does not."""
    sizes = {key: getattr(config.target, key) for key in ("width", "steps", "depth", "batch_size")}
    changed = {key: value for key, value in sizes.items() if value is not None}
    return with_setting(config.task, {**changed, "warmup_steps": 0})


def _flops(task: Task, count: Measure) -> float:
    return cost.training_flops(count(task.model).macs, samples=cost.samples_seen(task))


def _ratios(config: Config, proxies: Sequence[cost.Part], target: Task, count: Measure) -> dict[str, float]:
    """Equation 1 with our count of parameters, and with the paper's count if that is of these models."""
    own = [count(part.task.model).parameters for part in proxies]
    own_target = count(target.model).parameters
    samples = [part.trials * cost.samples_seen(part.task) for part in proxies]
    counted = cost.tuning_ratio(list(zip(own, samples, strict=True)), (own_target, cost.samples_seen(target)))
    ratios = {"tuning_ratio": counted, "tuning_ratio_counted": counted}
    published = config.published
    if published is None:
        return ratios
    pairs = [(published.target_params, own_target), *((published.proxy_params, ours) for ours in own)]
    if all(abs(math.log(theirs / ours)) < math.log(SAME_COUNT) for theirs, ours in pairs):
        theirs = [(published.proxy_params, seen) for seen in samples]
        ratios["tuning_ratio"] = cost.tuning_ratio(theirs, (published.target_params, cost.samples_seen(target)))
    if published.pretrainings is not None:
        ratios["experts_ratio"] = ratios["tuning_ratio"] / published.pretrainings
    return ratios


def _proposals(config: Config, target: Task, budget: float, count: Measure) -> list[cost.Proposal]:
    """Proposals from half the base width on, where the paper saw transfer hold, and of the study's own widths."""
    search, training = config.search, config.training
    if search.kind is StudyKind.ISOFLOP:
        raise BadInput("--budget: an isoFLOP study has its budgets in search.flops; leave --budget out")
    own = [int(width) for width in search.grids.get("width", (config.model.width,))]
    smallest = min(config.model.base_width // 2, *own)
    of_target = _flops(target, count)
    share_per_step = {}
    for width in sorted({*own, *(heads * config.model.head_dim for heads in HEADS)}):
        if not smallest <= width < target.model.width:
            continue
        try:
            macs = count(with_setting(config.task, {"width": width}).model).macs
        except BadInput:
            continue  # no model of this width can be built
        share_per_step[width] = cost.training_flops(macs, samples=training.batch_size) / of_target
    warmup = max(_values(config, "warmup_steps"), default=training.warmup_steps)
    lengths = {training.steps, *(round(share * target.training.steps) for share in cost.STEP_SHARES)}
    return cost.propose(
        share_per_step,
        sorted(steps for steps in lengths if max(warmup, 1) <= steps <= target.training.steps),
        budget=budget,
        wanted=_num_settings(config),
        seeds=search.seeds,
        unit=_unit(config),
        final_steps=search.finalists * (search.finalist_steps or 0),
    )


def _values(config: Config, name: str) -> Sequence[float]:
    if (space := config.search.spaces.get(name)) is not None:
        return [2.0**bound if space.log2 else bound for bound in space.bounds]
    return config.search.grids.get(name, ())


def _num_settings(config: Config) -> int:
    """How many settings the study tries at one size."""
    search = config.search
    return _unit(config) * len(search.grids.get(search.hp, (0,))) * (search.num_settings or 1)


def _unit(config: Config) -> int:
    """How many of those settings share one value of the tuned one: the combinations of all others with a grid."""
    hp = config.search.hp
    return math.prod(len(values) for name, values in config.search.grids.items() if name not in (*cost.SIZES, hp))


def _proposal(proposal: cost.Proposal, config: Config, command: str, count: Measure) -> dict[str, Any]:
    """A proposal as JSON. Its command is the given one with the overrides that make the study this proposal."""
    sizes = {"width": proposal.width, "batch_size": config.training.batch_size, "steps": proposal.steps}
    overrides = []
    for name, value in sizes.items():
        place = place_of(name)
        assert place is not None
        if name in config.search.grids:
            overrides.append(f"search.{name}=[{value}]")
        elif value_of(config.task, name) != value:
            overrides.append(f"{place[0]}.{place[1]}={value}")
    overrides += _fewer_settings(proposal.settings, config)
    model = with_setting(config.task, {"width": proposal.width}).model
    return {
        **sizes,
        "parameters": count(model).parameters,
        "settings": proposal.settings,
        "trials": proposal.settings * config.search.seeds + config.search.finalists * config.search.seeds,
        "ratio_flops": proposal.share,
        "command": " ".join([command, *(shlex.quote(override) for override in overrides)]),
    }


def _fewer_settings(settings: int, config: Config) -> list[str]:
    """The override that shortens a search: fewer draws, or the middle of the tuned setting's grid."""
    search, keep = config.search, settings // _unit(config)
    if settings >= _num_settings(config):
        return []
    if search.num_settings is not None:
        return [f"search.num_settings={keep}"]
    values = search.grids[search.hp]
    first = (len(values) - keep) // 2
    return [f"search.{search.hp}=[{','.join(map(repr, values[first : first + keep]))}]"]
