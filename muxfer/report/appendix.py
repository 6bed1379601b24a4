"""The page's appendix: the coordinate check, the cost, every trial."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from muxfer.analysis.cells import ordered, shown
from muxfer.files import content_of
from muxfer.report import html
from muxfer.report.figures import replace_file
from muxfer.report.format import METRIC, show_time
from muxfer.report.html import Section
from muxfer.report.sections import Context, drawing_of, drawn, logger
from muxfer.trial import Record
from muxfer.validate import expect

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
    control: NotRequired[Any]
    """None, or a _Control."""


def coordinates(folder: Path, context: Context) -> Section | None:
    """The coordinate check's verdict by measure, and its figure, copied beside the page."""
    if (given := context.get("check")) is None:
        return None
    if (found := (given, Path(given["figure"])) if isinstance(given, Mapping) else _newest_check(given)) is None:
        return None
    data, figure = found
    told = {"pass": "keeps", "fail": "does not keep"}.get(data["verdict"], data["verdict"])
    control = data.get("control") or {}
    beside = f" {control['parametrization']}, the control: {control['verdict']}." if control else ""
    sizes = ", ".join(map(str, data["sizes"]))
    sentence = (
        f"{data['model']} under {data['parametrization']} {told} its coordinates at {data['axis']} {sizes}"
        f" ({data['steps']} steps): {data['verdict']}.{beside}"
    )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in data["modules"]:
        groups.setdefault(line["measure"], []).append(line)
    rows = []
    for measure, lines in groups.items():
        sloped = [line for line in lines if line["slope"] is not None]
        worst = max(sloped, key=lambda line: abs(line["slope"] - line["expected"]), default=None)
        named = (
            "" if worst is None else f"{worst['slope']:+.2f} for {worst['expected']:+g}, {worst['name'] or 'the model'}"
        )
        failed = sum(not line["pass"] for line in lines)
        rows.append([measure.replace("_", " "), f"{len(lines)}", f"{failed}" if failed else "none", named])
    body = f"<p>{escape(sentence)}</p>" + html.table(["measure", "slopes", "failed", "farthest off"], rows)
    if drawing := drawing_of(figure.with_suffix(".svg")):
        files = [replace_file(folder / "coordinate-check.svg", drawing.encode())]
        if picture := content_of(figure.with_suffix(".png"), follow=False):
            files.append(replace_file(folder / "coordinate-check.png", picture))
        caption = "Each line is relative to the smallest size and the slope expected of it: a right one is flat."
        body += drawn(files, "c", caption)
    return Section(name="Coordinates", title="Coordinate check", body=body)


def _newest_check(folder: Path) -> tuple[Mapping[str, Any], Path] | None:
    """The newest check of a folder and where its figure lies: beside it. None where there is none of the right form.

    The figure that the file names is not asked for: the page goes to the ledger, and that could be any file.
    """
    file = max(folder.glob("*.json"), key=lambda file: file.lstat().st_mtime, default=None)
    if file is None:
        return None
    try:
        if (content := content_of(file, follow=False)) is None:
            raise ValueError("it can't be read, or is no file")
        data = json.loads(content)
        expect(_Check, data)
        json.dumps(data, ensure_ascii=False).encode()  # no page can hold half a character
        if data.get("control") is not None:
            expect(_Control, data["control"], "control")
    except (ValueError, RecursionError) as error:
        logger.warning(
            "the page has no coordinate check, %s is none (%.200s): muxfer check makes it again", file, error
        )
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
    shares = (("tuning cost", "tuning_ratio", "trials × parameters × samples"), ("", "tuning_ratio_flops", "FLOPs"))
    told = [f"{100 * plan[key]:.2g} % of the target's {what}" for _, key, what in shares if plan.get(key) is not None]
    if told:
        facts["share"] = ", ".join(told)
    if plan.get("hours") is not None:
        facts["planned"] = show_time(3600 * plan["hours"])
    sizes = sorted({record.num_parameters for record in trials if record.num_parameters})
    if sizes:
        facts["parameters"] = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    if resumed := sum(record.resumed_at > 0 for record in trials):
        facts["resumed"] = f"{resumed}, from a checkpoint"
    if "command" in context:
        facts["command"] = context["command"]
    return Section(name="Cost", title="Cost", body=html.pairs(facts))


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
    body = html.folded(f"{len(rows)} trials: key, setting, outcome, loss", html.table(header, rows))
    return Section(name="Every trial", title="Every trial", body=body)
