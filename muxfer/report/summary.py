"""What a study's page says first: the verdict in words, the best setting, what to type next, a handful of numbers."""

import shlex
from collections.abc import Sequence
from html import escape

from muxfer.analysis.cells import finite, percent, settings_at_largest, settled_table, shown
from muxfer.analysis.scaling_law import IsoflopFit
from muxfer.analysis.scattered import is_scattered
from muxfer.analysis.transferability import best_setting
from muxfer.report import html
from muxfer.report.format import METRIC, brief_value, drift_unit, edge_text, num_decimals, regret_text, show_time
from muxfer.report.sections import Context
from muxfer.trial import Record, Verdict


def answer(study_name: str, records: Sequence[Record], verdict: Verdict, context: Context) -> str:
    """Verdict, best setting, what to type next, and the study in a handful of numbers."""
    axis, hp = verdict.axis, verdict.hp
    about = f"<p class='about'>{escape(context['description'])}</p>" if context.get("description") else ""
    if (fit := context.get("fit")) is not None:
        return _law(study_name, fit) + about + html.tiles([_cost(records, context)])
    headline = {
        "transfers": f"The best {hp} transfers along {axis}.",
        "drifts": f"The best {hp} drifts along {axis}.",
    }.get(verdict.verdict, f"Cannot tell whether the best {hp} transfers along {axis}.")
    if len(verdict.optimum) == 1 and is_scattered(records, axis, hp):
        headline = f"The best of {len(settings_at_largest(records, axis))} settings at {axis} {min(verdict.optimum):g}."
    why = f"{verdict.why[:1].upper()}{verdict.why[1:]}."
    lead = {"transfers": "Next", "drifts": "Next, knowing that it drifts"}.get(
        verdict.verdict, "Next, once that is settled"
    )
    command = context.get("next_command", f"muxfer transfer {shlex.quote(study_name)}")
    cards = (
        f"<div class='cards'><div class='choice'><h3>Best setting</h3>{_best(records, verdict)}</div>"
        f"<div class='next'><h3>{lead}</h3><pre>{escape(command)}</pre></div></div>"
    )
    head = html.headline(f"muxfer · sweep {study_name}", headline, why, verdict.verdict, verdict.verdict)
    return head + about + cards + html.tiles(_facts(records, verdict, context))


def _best(records: Sequence[Record], verdict: Verdict) -> str:
    axis, hp = verdict.axis, verdict.hp
    best = best_setting(records, axis=axis, hp=hp)
    if best is None:
        return f"<p>No {escape(hp)} has a finite loss at the largest {escape(axis)}.</p>"
    exact = ""
    for name, value in best.setting.items():
        if name != axis:
            brief, full = brief_value(value), str(value)
            also = "" if full == brief or isinstance(value, str) else f"<small>= {escape(f'{value:.10g}')}</small>"
            exact += f"<p><b>{escape(name)} {escape(brief)}</b>{also}</p>"
    seeds = f", mean of {len(best.records)} seeds" if len(best.records) > 1 else ""
    decimals = num_decimals(settled_table(records, axis, hp))
    loss = f"{METRIC} {best.metric:.{decimals}f} at {axis} {best.setting[axis]}{seeds}"
    return f"{exact}<p>{escape(loss)}</p>"


def _facts(records: Sequence[Record], verdict: Verdict, context: Context) -> list[tuple[str, str, str]]:
    axis, hp = verdict.axis, verdict.hp
    facts = []
    if verdict.from_ is not None:
        facts.append(
            ("Transfers from", f"{axis} {verdict.from_:g} on", f"to {axis} {max(verdict.optimum):g}, the largest")
        )
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
    return [*facts, _cost(records, context)]


def _cost(records: Sequence[Record], context: Context) -> tuple[str, str, str]:
    proxies = [record for record in records if record.kind == "proxy"]
    spent = f"{show_time(sum(record.train_seconds for record in proxies))} of training"
    if (ratio := context.get("plan", {}).get("tuning_ratio")) is not None:
        spent += f", {100 * ratio:.1f} % of the target"
    return "Cost", f"{len(proxies)} trials", spent


def _law(study_name: str, fit: IsoflopFit) -> str:
    """A study of budgets against sizes answers how the best size grows, not whether anything stays put."""
    kicker = f"muxfer · sweep {study_name}"
    if "params" not in fit.laws:
        return html.headline(kicker, "No scaling law can be told.", f"{fit.why}.", "abstains", "abstains")
    size, loss = fit.laws["params"].exponent, fit.laws["loss"].exponent
    answer = f"The best size grows as FLOPs to the power of {size.value:.3f}."
    why = (
        f"95 %: {size.low:.3f} to {size.high:.3f}, from {len(fit.kept)} of {len(fit.budgets)} budgets; the loss falls"
        f" with a power of {loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})."
    )
    return html.headline(kicker, answer, why, "transfers", "fitted")
