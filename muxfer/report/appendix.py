"""The appendix of a study's page: coordinate check, cost, environment and every trial."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from muxfer.analysis.cells import ordered, shown
from muxfer.files import content_of, replace_file
from muxfer.report.blocks import Block, Fold, Pairs, Paragraph, Section, Table, drawn
from muxfer.report.format import METRIC, show_time
from muxfer.report.sections import Context
from muxfer.trial import Record
from muxfer.validate import expect

logger = logging.getLogger(__name__)

_Line = TypedDict("_Line", {"name": str, "measure": str, "slope": float | None, "expected": float, "pass": bool})


class _Control(TypedDict):
    parametrization: str
    verdict: str


class _Check(TypedDict):
    model: str
    parametrization: str
    verdict: str
    axis: str
    sizes: Sequence[int]
    steps: int
    modules: Sequence[_Line]
    control: NotRequired[Any]  # None, or a _Control


def coordinates(folder: Path, context: Context) -> Section | None:
    """The coordinate check's verdict by measure, and its figure, copied beside the page."""
    if (given := context.get("check")) is None:
        return None
    check = (given, Path(given["figure"])) if isinstance(given, Mapping) else _newest_check(given)
    if check is None:
        return None
    data, figure = check
    keeps = {"pass": "keeps", "fail": "does not keep"}.get(data["verdict"], data["verdict"])
    control = data.get("control") or {}
    control_text = f" {control['parametrization']}, the control: {control['verdict']}." if control else ""
    sizes = ", ".join(map(str, data["sizes"]))
    sentence = (
        f"{data['model']} under {data['parametrization']} {keeps} its coordinates at {data['axis']} {sizes}"
        f" ({data['steps']} steps): {data['verdict']}.{control_text}"
    )
    header = ["measure", "slopes", "failed", "farthest off"]
    blocks: list[Block] = [Paragraph(text=sentence), Table(header=header, rows=_measure_rows(data["modules"]))]
    if drawing := drawing_of(figure.with_suffix(".svg")):
        files = [replace_file(folder / "coordinate-check.svg", drawing.encode())]
        if picture := content_of(figure.with_suffix(".png"), follow=False):
            files.append(replace_file(folder / "coordinate-check.png", picture))
        caption = "Each line is relative to the smallest size and the slope expected of it: a right one is flat."
        blocks.append(drawn(files, "c", caption))
    return Section(name="Coordinates", title="Coordinate check", blocks=blocks)


def _measure_rows(modules: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each measure the number of slopes, how many failed, and the one farthest from what is expected."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in modules:
        groups.setdefault(line["measure"], []).append(line)
    rows = []
    for measure, lines in groups.items():
        sloped = [line for line in lines if line["slope"] is not None]
        worst = max(sloped, key=lambda line: abs(line["slope"] - line["expected"]), default=None)
        farthest = worst and f"{worst['slope']:+.2f} for {worst['expected']:+g}, {worst['name'] or 'the model'}"
        num_failed = sum(not line["pass"] for line in lines)
        rows.append(
            [measure.replace("_", " "), f"{len(lines)}", f"{num_failed}" if num_failed else "none", farthest or ""]
        )
    return rows


def drawing_of(file: Path) -> str | None:
    """The SVG in the file; None where there is none. A link is not followed."""
    text = (content_of(file, follow=False) or b"").decode(errors="replace")
    return text if "<svg" in text else None


def _newest_check(folder: Path) -> tuple[Mapping[str, Any], Path] | None:
    """The newest check in a folder, and where its figure lies: beside it. None where no file has the right form. The
    figure that the file names is not read: it could be any file, and the page goes to the ledger.
    """
    if (file := max(folder.glob("*.json"), key=lambda file: file.lstat().st_mtime, default=None)) is None:
        return None
    try:
        if (content := content_of(file, follow=False)) is None:
            raise ValueError("it can't be read, or is not a file")
        data = json.loads(content)
        expect(_Check, data)
        json.dumps(data, ensure_ascii=False).encode()  # no page can hold half a character
        if data.get("control") is not None:
            expect(_Control, data["control"], "control")
    except (ValueError, RecursionError) as error:
        message = "the page has no coordinate check: %s is not one (%.200s); muxfer check makes it again"
        logger.warning(message, file, error)
        return None
    return data, file


def cost(records: Sequence[Record], context: Context) -> Section:
    """What the study took: trials, time, FLOPs and their share of the target's."""
    trials = [record for record in records if record.kind == "proxy"]
    outcomes = Counter(str(record.outcome) for record in trials)
    facts: dict[str, Any] = {
        "trials": f"{len(trials)} ({', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())})",
        "training": show_time(sum(record.train_seconds for record in trials)),
    }
    if "wall_seconds" in context:
        facts["wall clock"] = show_time(context["wall_seconds"])
    plan = context.get("plan", {})
    for name, key in (("FLOPs of the proxies", "proxy_flops"), ("FLOPs of the target", "target_flops")):
        if plan.get(key) is not None:
            facts[name] = f"{plan[key]:.3g}"
    shares = (("tuning_ratio", "trials × parameters × samples"), ("tuning_ratio_flops", "FLOPs"))
    known = [(plan[key], what) for key, what in shares if plan.get(key) is not None]
    if known:
        facts["share"] = ", ".join(f"{100 * share:.2g} % of the target's {what}" for share, what in known)
    if plan.get("hours") is not None:
        facts["planned"] = show_time(3600 * plan["hours"])
    sizes = sorted({record.num_parameters for record in trials if record.num_parameters})
    if sizes:
        facts["parameters"] = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    if resumed := sum(record.resumed_at > 0 for record in trials):
        facts["resumed"] = f"{resumed}, from a checkpoint"
    if "command" in context:
        facts["command"] = context["command"]
    return Section(name="Cost", title="Cost", blocks=[Pairs(values=facts)])


def environment(context: Context) -> Section | None:
    facts = context.get("environment")
    return Section(name="Environment", title="Environment", blocks=[Pairs(values=facts)]) if facts else None


def every_trial(records: Sequence[Record]) -> Section:
    names = sorted({name for record in records for name in record.setting})
    header = ["key", *names, "replicate", "outcome", METRIC, "step", "seconds", "remarks"]
    rows = []
    for record in ordered(records):
        values = [record.setting.get(name, "") for name in names]
        settings = [value if isinstance(value, str) else shown(value) for value in values]
        metric = "" if record.metric is None else f"{record.metric:#.6g}"
        remarks = [record.kind] if record.kind != "proxy" else []
        remarks += [f"resumed at {record.resumed_at}"] if record.resumed_at else []
        remarks += [record.error] if record.error else []
        shared = [str(record.replicate), str(record.outcome), metric, str(record.step), f"{record.train_seconds:.1f}"]
        rows.append([record.key, *settings, *shared, "; ".join(remarks)])
    fold = Fold(summary=f"{len(rows)} trials: key, setting, outcome, loss", blocks=[Table(header=header, rows=rows)])
    return Section(name="Every trial", title="Every trial", blocks=[fold])
