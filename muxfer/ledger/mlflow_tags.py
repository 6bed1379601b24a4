"""The names and values of the tags and params that a run has: how they are written, and how they are read back."""

import json
import math
import re
import reprlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from muxfer.errors import BadInput
from muxfer.trial import Record, Trial
from muxfer.validate import expect

ERROR_CHARACTERS = 3000  # The longest text of an error in a record, in characters of JSON. A whole record is one tag.
RUN_NAME_CHARACTERS = 250
PARAM_NAMES = ("name", "parametrization", "base_lr", "weight_decay", "steps", "batch_size", "schedule", "seed")
"""The values outside `model` that become params."""
SCHEMA = 1
"""The version of all tags, params and operations that the ledger writes. A ledger with a higher version is refused.
Raise it together with a reader for the old one."""
TAG_CHARACTERS = 7000  # The longest part of a text that `split_tag` writes into one tag
KEY = re.compile(r"[\w.-]{1,64}", re.ASCII)


@contextmanager
def parsing_tag(run: Any, tag: str) -> Iterator[None]:
    """While a tag is read, turn a ValueError into BadInput: somebody else has written that tag."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        where = f"tag {tag} of run {run.info.run_id}"
        raise BadInput(f"{where} was not written by muxfer ({error}): correct it or delete that run") from None


def read_json(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object that `split_tag` split. ValueError if there is none."""
    try:
        parts = [tags[f"{name}.{number}"] for number in range(int(tags.get(f"{name}.parts", 0)))]
        data = json.loads("".join(parts))
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing") from None
    expect(Mapping[str, Any], data)
    return dict(data)


def read_record(run: Any) -> Record | None:
    """The record of the highest epoch. None if a driver of a higher epoch has begun the trial again."""
    newest = recorded_epoch(run)
    if newest < 0 or newest < claimed_epoch(run):
        return None
    tag = f"muxfer.record.e{newest}"
    with parsing_tag(run, tag):
        return replace(Record.from_dict(json.loads(run.data.tags[tag])), run_id=run.info.run_id)


def cut_error(text: str) -> str:
    """Cut an error's text so that it takes at most ERROR_CHARACTERS of JSON."""
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
    """The setting and the architecture as params. The whole task is an artifact."""
    params = {name: _text(value) for name, value in trial.setting.items()} | {"replicate": str(trial.replicate)}
    for group in ("model", "objective", "optimizer", "training"):
        values = trial.task.get(group, {})
        wanted = values if group == "model" else {name: values[name] for name in PARAM_NAMES if name in values}
        params |= {f"{group}.{name}": _text(value) for name, value in wanted.items()}
    return params


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


def validate_key(key: Any) -> str:
    """Return a key that is safe in a query and in a folder's name. ValueError for any other."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise ValueError(f"key is {reprlib.repr(key)}: expected letters and digits")
    return key


def claimed_epoch(run: Any) -> int:
    """The highest epoch that claimed this run, 0 if none did."""
    return max((int(tag[14:]) for tag in run.data.tags if re.fullmatch(r"muxfer\.claim\.e\d+", tag)), default=0)


def recorded_epoch(run: Any) -> int:
    """The highest epoch that settled this run, -1 if none did."""
    return max((int(tag[15:]) for tag in run.data.tags if re.fullmatch(r"muxfer\.record\.e\d+", tag)), default=-1)


def choose_run(runs: Sequence[Any]) -> Any:
    """Choose the run that counts from the runs of one key: a late `create_run` may have made several."""
    return min(runs, key=lambda run: (-claimed_epoch(run), run.info.start_time, run.info.run_id))


def refuse_newer_schema(runs: Sequence[Any], what: str) -> None:
    """Raise BadInput if a newer muxfer has written these runs. This version would misread them."""
    try:
        newest = max((int(run.data.tags.get("muxfer.schema", SCHEMA)) for run in runs), default=SCHEMA)
    except ValueError:
        raise BadInput(f"a tag muxfer.schema of {what} was not written by muxfer: correct it or delete it") from None
    if newest > SCHEMA:
        versions = f"ledger schema {newest}, this one knows {SCHEMA}"
        raise BadInput(f"{what} was written by a newer muxfer ({versions}): upgrade muxfer")


def split_tag(name: str, text: str) -> dict[str, str]:
    """Split a long text into tags that one search brings back. One more holds their number: it may become less."""
    parts = [text[start : start + TAG_CHARACTERS] for start in range(0, len(text), TAG_CHARACTERS)]
    return {f"{name}.parts": str(len(parts))} | {f"{name}.{number}": part for number, part in enumerate(parts)}


def pretty_json(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def now_ms() -> int:
    return time.time_ns() // 1_000_000
