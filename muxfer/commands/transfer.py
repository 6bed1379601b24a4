"""`muxfer transfer`: choose the best base settings of a recorded study, show them, train the target, hand it out."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from muxfer.analysis.loss_band import LossBand
from muxfer.commands.result import CommandResult
from muxfer.files import TargetFolder, validate_writable
from muxfer.report.format import show_setting
from muxfer.report.target_page import write_target
from muxfer.study.resolve import PrintLine, Request, resolve
from muxfer.study.search import searched
from muxfer.study.session import drive, open_ledger
from muxfer.transfer.choice import Choice, choose_target
from muxfer.transfer.launch import launch_target
from muxfer.transfer.target import value_text
from muxfer.transfer.text import base_depth, scale_groups, scales_text, settings_text, watch_text
from muxfer.trial import Record


def transfer(
    name: str,
    overrides: Sequence[str],
    *,
    print_line: PrintLine,
    dry_run: bool = False,
    force: bool = False,
    flops: float | None = None,
    law: str | None = None,
) -> CommandResult:
    """Choose the best base settings, launch the target. `flops` sizes it by the fit of `law`, None: of the study."""
    request = resolve(name, overrides)
    with open_ledger(request, existing=True) as ledger:
        choice = choose_target(request, ledger, flops=flops, law=law, force=force)
        files = request.files_of(choice.study.study)
        validate_writable(files.path)
        lines, data = _lines(choice), _data(choice, name)
        if dry_run:
            empty = {"metric": None, "run_id": None, "checkpoint": None}
            return CommandResult(data=data | empty, text="\n".join([*lines, "dry run: nothing was launched"]))
        print_line("\n".join(lines))
        with drive(request, ledger=ledger, recorded=choice.study.study) as session:
            record = launch_target(session, choice, print_line=print_line)
        page = _write_page(request, choice, record)
    return _result(choice, record, files.target(record.key), page, data)


def _lines(choice: Choice) -> list[str]:
    """What is chosen and planned, as a person reads it before the target starts."""
    target = choice.target
    return [
        f"{choice.study.study.label}: best at {show_setting(target.winner.setting)}, validation loss"
        f" {target.proxy_metric:.4f}",
        f"verdict: {choice.verdict.verdict}: {choice.verdict.why}",
        *([] if choice.sizing is None else [choice.sizing]),
        *choice.study.notes,
        *(f"forced: {objection}" for objection in target.forced),
        scales_text(choice.scales, target.task),
        settings_text(target.settings),
        watch_text(choice.band, guarded=choice.guarded),
    ]


def _data(choice: Choice, name: str) -> dict[str, Any]:
    target, task = choice.target, choice.target.task
    source = {"sweep": name, "study": choice.study.study.key, "trial": target.winner.key}
    why = None if isinstance(choice.band, LossBand) else choice.band
    return {
        "source": source | {"plan_hash": choice.scales.hash},
        "setting": dict(target.trial.setting),
        "target": {"model": task.model.family, "width": task.model.width, "steps": task.training.steps},
        "proxy_metric": target.proxy_metric,
        "tuning_ratio": choice.tuning_ratio,
        "groups": scale_groups(choice.scales, task),
        "settings": [asdict(setting) for setting in target.settings],
        "sized": choice.sizing,
        "guard": {"watched": choice.watched_band is not None, "why": why},
        "forced": list(target.forced),
    }


def _write_page(request: Request, choice: Choice, record: Record) -> Path:
    study, target, scales = choice.study, choice.target, choice.scales
    files = request.files_of(study.study)
    origin = {
        "source": f"sweep {study.study.name}, study {study.study.key}",
        "winning trial": f"{target.winner.key}, {show_setting(target.winner.setting)}",
        "plan": f"{scales.hash}, {scales.parametrization} with base width {scales.base_width}{base_depth(scales)}",
        **{one.name: f"{one.how}: {value_text(one.target)}, {one.why}" for one in target.settings},
        **({"forced": "; ".join(target.forced)} if target.forced else {}),
    }
    outputs = files.target(record.key)
    return write_target(
        request.name,
        files.path,
        record,
        searched(study.config.search, study.records),
        choice.verdict,
        samples=outputs.samples,
        lineage=origin,
        band=outputs.loss_band.with_suffix(".svg"),
    )


def _result(choice: Choice, record: Record, files: TargetFolder, page: Path, data: dict[str, Any]) -> CommandResult:
    assert record.metric is not None
    data |= {"metric": record.metric, "run_id": record.run_id, "checkpoint": str(files.weights)}
    data |= {"samples": str(files.samples), "report": str(page)}
    lowest = min(proxy.metric for proxy in choice.study.records if proxy.metric is not None)
    better = "below every proxy's" if record.metric < lowest else "NOT below every proxy's"
    lines = [
        f"target: validation loss {record.metric:.4f}, {better} (the lowest is {lowest:.4f})",
        f"tuning cost {100 * choice.tuning_ratio:.1f} % of the target (trials x parameters x samples)",
        f"weights: {files.weights}",
        f"samples: {files.samples}",
        f"report:  {page}",
    ]
    return CommandResult(data=data, text="\n".join(lines))
