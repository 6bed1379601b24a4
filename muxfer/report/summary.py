"""The top of a study's page: the verdict in words, the best setting, what to type next, and a few numbers."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muxfer.analysis.cells import finite, percent, settings_at_largest, settled_table, shown
from muxfer.analysis.laws.scaling_law import IsoflopFit
from muxfer.analysis.scattered import is_scattered
from muxfer.analysis.transferability import best_setting
from muxfer.report.blocks import Headline
from muxfer.report.format import METRIC, brief_value, drift_unit, edge_text, num_decimals, regret_text, show_time
from muxfer.report.sections import Context
from muxfer.trial import Record, Verdict

Tile = tuple[str, str, str]  # A number on the page: its name, the number, and what it means


@dataclass(frozen=True)
class Choice:
    """The best setting and the next command. `settings` are (name, value, exact value or "" where it is the same)."""

    settings: Sequence[tuple[str, str, str]]
    reached: str
    lead: str
    command: str


def summary(study_name: str, records: Sequence[Record], verdict: Verdict, context: Context) -> dict[str, Any]:
    """What study.html shows above its sections, by the names in that template."""
    description = context.get("description", "")
    if (fit := context.get("fit")) is not None:
        headline, tiles = _scaling_law(study_name, fit), [_cost(records, context)]
        return {"headline": headline, "description": description, "choice": None, "tiles": tiles}
    return {
        "headline": _headline(study_name, records, verdict),
        "description": description,
        "choice": _choice(study_name, records, verdict, context),
        "tiles": [*_facts(verdict), _cost(records, context)],
    }


def _headline(study_name: str, records: Sequence[Record], verdict: Verdict) -> Headline:
    axis, hp = verdict.axis, verdict.hp
    title = f"The best {hp} {verdict.verdict} along {axis}."
    if verdict.verdict not in ("transfers", "drifts"):
        title = f"Cannot tell whether the best {hp} transfers along {axis}."
    if len(verdict.optimum) == 1 and is_scattered(records, axis, hp):
        title = f"The best of {len(settings_at_largest(records, axis))} settings at {axis} {min(verdict.optimum):g}."
    why = f"{verdict.why[:1].upper()}{verdict.why[1:]}."
    kicker = f"muxfer · sweep {study_name}"
    return Headline(kicker=kicker, title=title, why=why, tone=verdict.verdict, badge=verdict.verdict)


def _choice(study_name: str, records: Sequence[Record], verdict: Verdict, context: Context) -> Choice:
    axis, hp = verdict.axis, verdict.hp
    leads = {"transfers": "Next", "drifts": "Next, knowing that it drifts"}
    lead = leads.get(verdict.verdict, "Next, once that is settled")
    command = context.get("next_command", f"muxfer transfer {shlex.quote(study_name)}")
    if (best := best_setting(records, axis=axis, hp=hp)) is None:
        return Choice([], f"No {hp} has a finite loss at the largest {axis}.", lead, command)
    settings = []
    for name, value in best.setting.items():
        if name != axis:
            brief = brief_value(value)
            exact = "" if isinstance(value, str) or str(value) == brief else f"{value:.10g}"
            settings.append((name, brief, exact))
    seeds = f", mean of {len(best.records)} seeds" if len(best.records) > 1 else ""
    decimals = num_decimals(settled_table(records, axis, hp))
    reached = f"{METRIC} {best.metric:.{decimals}f} at {axis} {best.setting[axis]}{seeds}"
    return Choice(settings, reached, lead, command)


def _facts(verdict: Verdict) -> list[Tile]:
    axis, hp = verdict.axis, verdict.hp
    facts: list[Tile] = []
    if verdict.from_ is not None:
        to_largest = f"to {axis} {max(verdict.optimum):g}, the largest"
        facts.append(("Transfers from", f"{axis} {verdict.from_:g} on", to_largest))
    if verdict.regret:
        first = verdict.regret[0]
        cost = regret_text(first).split(" (")[0]
        upper = f", at most {percent(first.high)} (95 %)" if finite(first.high) else ""
        facts.append((f"Regret of {axis} {first.from_:g}", cost, f"lost at {axis} {first.to:g} by its choice{upper}"))
    drift = verdict.drift_per_doubling
    if (value := drift.get("value")) is not None:
        low, high = drift.get("low"), drift.get("high")
        interval = f"; 95 %: {low:+.2f} to {high:+.2f}" if finite(low) and finite(high) else ""
        facts.append(("Drift", f"{value:+.2f}", f"{drift_unit(verdict)}{interval}"))
    largest = verdict.optimum[max(verdict.optimum)] if verdict.optimum else None
    if largest is not None and largest.stable is not None and edge_text(hp, largest):
        near = edge_text(hp, largest).partition(" the largest")[0]
        near = "which is the optimum" if near == "the optimum is" else near
        facts.append((f"Largest stable {hp}", shown(largest.stable), near))
    return facts


def _cost(records: Sequence[Record], context: Context) -> Tile:
    proxies = [record for record in records if record.kind == "proxy"]
    spent = f"{show_time(sum(record.train_seconds for record in proxies))} of training"
    if (ratio := context.get("plan", {}).get("tuning_ratio")) is not None:
        spent += f", {100 * ratio:.1f} % of the target"
    return "Cost", f"{len(proxies)} trials", spent


def _scaling_law(study_name: str, fit: IsoflopFit) -> Headline:
    """A study of budgets against sizes shows how the best size grows, not whether an optimum stays."""
    kicker = f"muxfer · sweep {study_name}"
    if "params" not in fit.laws:
        title = "No scaling law can be told."
        return Headline(kicker=kicker, title=title, why=f"{fit.why}.", tone="abstains", badge="abstains")
    size, loss = fit.laws["params"].exponent, fit.laws["loss"].exponent
    why = (
        f"95 %: {size.low:.3f} to {size.high:.3f}, from {len(fit.kept)} of {len(fit.budgets)} budgets; the loss falls"
        f" with a power of {loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})."
    )
    title = f"The best size grows as FLOPs to the power of {size.value:.3f}."
    return Headline(kicker=kicker, title=title, why=why, tone="transfers", badge="fitted")
