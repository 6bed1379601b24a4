"""Which recorded study a name and its overrides mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from muxfer.config.parse import parse_task
from muxfer.config.settings import ADDED_LATER
from muxfer.config.study import Config
from muxfer.config.task import Task, to_plain
from muxfer.errors import BadInput
from muxfer.trial import Study

UNNAMED = {"search.sampler": "grid"}  # what a study has where its identity does not name the key
UNSPECIFIED = ("data_fingerprint", "numerics")
"""Keys that no override can name. Among matching studies, those with today's values are meant."""


def studies_that_fit(studies: Sequence[Study], wanted: Study, overridden: Sequence[str]) -> list[Study]:
    """The studies that agree with the wanted one in every key that the user's overrides name."""
    want = _flat(wanted.identity)

    def fits(study: Study) -> bool:
        have = _flat(study.identity)
        named = [key for key in {*want, *have} if any(key == name or key.startswith(f"{name}.") for name in overridden)]
        return all(want.get(key) == have.get(key) for key in named)

    return [study for study in studies if fits(study)]


def the_study(studies: Sequence[Study], wanted: Study, overridden: Sequence[str]) -> Study:
    """The one study that is meant. BadInput when none fits, or when two fit: then it names a key that differs."""
    matches = studies_that_fit(studies, wanted, overridden)
    of_today = [study for study in matches if all(study.identity[key] == wanted.identity[key] for key in UNSPECIFIED)]
    matches = of_today or matches
    if len(matches) == 1:
        return matches[0]
    if not matches:
        overrides = f" with {' '.join(overridden)}" if overridden else ""
        known = f"; recorded: {', '.join(study.label for study in studies)}" if studies else ""
        raise BadInput(f"no study {wanted.name}{overrides} in this ledger{known}; run muxfer sweep {wanted.name} first")
    flat = [_flat(study.identity) for study in matches]
    differing = sorted(key for key in set().union(*flat) if len({str(one.get(key)) for one in flat}) > 1)
    groups = [key for key in differing if key.endswith(".name")]
    key = next((key for key in groups or differing if key not in UNSPECIFIED), None)
    if key is None:
        raise BadInput(f"{len(matches)} studies of {wanted.name} fit, made with other data: give the sweep's data=...")
    override = key.removesuffix(".name")
    unnamed = {**ADDED_LATER, **UNNAMED}
    choices = " or ".join(sorted({f"{override}={one.get(key, unnamed.get(key))}" for one in flat}))
    raise BadInput(f"{len(matches)} studies of {wanted.name} fit; say which one: {choices}")


def proxy_task(config: Config, study: Study) -> Task:
    """The task that a study trained: its recorded identity, and from `config` only what no key holds."""
    plain = to_plain(config.task)
    merged = {group: {**plain[group], **study.identity.get(group, {})} for group in plain}
    for group in ("data", "objective"):  # drop the keys of another variant
        own = study.identity[group]
        merged[group] = {**({} if plain[group]["name"] != own["name"] else plain[group]), **own}
    return parse_task(merged)


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
