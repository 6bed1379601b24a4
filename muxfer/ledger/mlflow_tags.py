"""How studies, trials and records are written as MLflow tags and params, and read back."""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from muxfer.errors import BadInput
from muxfer.trial import Record, Trial
from muxfer.validate import expect

ERROR_CHARACTERS = 3000
"""What an error's text may take in a record, written out as JSON; the record as a whole is one tag."""
RUN_NAME_CHARACTERS = 250
RELEVANT = ("name", "parametrization", "base_lr", "weight_decay", "steps", "batch_size", "schedule", "seed")

SCHEMA = 1
"""Version of everything this file writes. A ledger of a higher one is refused; raise it with a reader for the old."""
TAG_CHARACTERS = 7000


@contextmanager
def as_ours(run: Any, tag: str) -> Iterator[None]:
    """While a tag is read: BadInput where somebody else wrote there, with what is wrong with it."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"tag {tag} of run {run.info.run_id} is none of muxfer's ({error}): mend it or delete that run"
        ) from None


def json_of(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    """The object in the parts of a tag. ValueError where there is none."""
    try:
        data = json.loads(joined_tag(tags, name))
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing") from None
    expect(Mapping[str, Any], data)
    return dict(data)


def record_of(run: Any) -> Record | None:
    """The record of the highest epoch, unless a driver of a still higher one began the trial again."""
    tags = run.data.tags
    newest = newest_record(run)
    if newest < 0 or newest < highest_claim(run):
        return None
    tag = f"muxfer.record.e{newest}"
    with as_ours(run, tag):
        return replace(Record.from_dict(json.loads(tags[tag])), run_id=run.info.run_id)


def cut_text(text: str) -> str:
    text = text[:ERROR_CHARACTERS]
    while len(json.dumps(text)) > ERROR_CHARACTERS:
        text = text[: len(text) * 7 // 8]
    return text


def lineage_tags(trial: Trial) -> dict[str, str]:
    return {
        f"muxfer.lineage.{name}": value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        for name, value in trial.lineage.items()
    }


def trial_params(trial: Trial) -> dict[str, str]:
    """What was swept and the architecture; the rest of the task is an artifact."""
    found = {name: _text(value) for name, value in trial.setting.items()} | {"replicate": str(trial.replicate)}
    for group in ("model", "objective", "optimizer", "training"):
        values = trial.task.get(group, {})
        wanted = values if group == "model" else {name: values[name] for name in RELEVANT if name in values}
        found |= {f"{group}.{name}": _text(value) for name, value in wanted.items()}
    return found


def run_name(trial: Trial) -> str:
    setting = " ".join(f"{name}={_text(value, powers=True)}" for name, value in trial.setting.items())
    prefix = "" if trial.kind == "proxy" else f"{trial.kind} "
    return f"{prefix}{setting} seed {trial.replicate}".strip()


def _text(value: Any, *, powers: bool = False) -> str:
    if powers and isinstance(value, float) and math.isfinite(value) and 0 < value < 1:
        mantissa, exponent = math.frexp(value)
        if mantissa == 0.5:
            return f"2^{exponent - 1}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def safe_key(key: str) -> str:
    if not re.fullmatch(r"[\w.-]{1,64}", key, re.ASCII):
        raise ValueError(f"key {key[:80]!r}: expected letters and digits")
    return key


def highest_claim(run: Any) -> int:
    claims = [int(name[14:]) for name in run.data.tags if re.fullmatch(r"muxfer\.claim\.e\d+", name)]
    return max(claims, default=0)


def newest_record(run: Any) -> int:
    """The highest epoch that settled this run, -1 if none did."""
    epochs = [int(name[15:]) for name in run.data.tags if re.fullmatch(r"muxfer\.record\.e\d+", name)]
    return max(epochs, default=-1)


def chosen_of(runs: Sequence[Any]) -> Any:
    """Of the runs of one key, the one that counts."""
    return min(runs, key=lambda run: (-highest_claim(run), run.info.start_time, run.info.run_id))


def refuse_newer_schema(runs: Sequence[Any], what: str) -> None:
    """Raises BadInput where a newer muxfer has written: to go on would be to misread it."""
    try:
        newest = max((int(run.data.tags.get("muxfer.schema", SCHEMA)) for run in runs), default=SCHEMA)
    except ValueError:
        raise BadInput(f"a tag muxfer.schema of {what} is none of muxfer's: mend or delete it") from None
    if newest > SCHEMA:
        raise BadInput(
            f"{what} was written by a newer muxfer (ledger schema {newest}, this one knows {SCHEMA}): upgrade muxfer"
        )


def split_tag(name: str, text: str) -> dict[str, str]:
    """A long text as several tags, so that one search brings it back; their number, as a shorter one may follow."""
    parts = [text[start : start + TAG_CHARACTERS] for start in range(0, len(text), TAG_CHARACTERS)]
    return {f"{name}.parts": str(len(parts))} | {f"{name}.{number}": part for number, part in enumerate(parts)}


def joined_tag(tags: Mapping[str, str], name: str) -> str:
    return "".join(tags[f"{name}.{number}"] for number in range(int(tags.get(f"{name}.parts", 0))))


def pretty(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def now_ms() -> int:
    return time.time_ns() // 1_000_000
