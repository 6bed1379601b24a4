"""Values out of the environment: recorded by the name of their variable, and masked wherever text leaves.

A text of a configuration may hold ${oc.env:NAME}. Keys hash what it stands for, so that a study is the same however its
configuration was written; what is stored holds the name alone (`hidden`), and is made whole again from today's
environment when it is read (`resolved`). A ledger is not trusted with that: one that asks for a variable which by its
name is a secret gets nothing. Behind this stands `masked`: whatever is printed, reported or recorded passes it.
"""

import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote

from muxfer.errors import BadInput

VARIABLE = re.compile(r"""\$\{oc\.env:([A-Za-z_]\w*)(?:,([^{}$,'"]*))?\}""", re.ASCII)
DECODED = re.compile(r"\$\{oc\.decode:([^}]*\}[^}]*)\}")
SECRET_NAMES = re.compile(
    r"(?i)(password|passwd|secret|token|credential|api_?key|access_?key|private_?key)(?!.*_(file|path|dir)$)"
)
CREDENTIALS = re.compile(r"""(://)([^/:\s'"]*:(?:(?!://|</)[^\s'"])*|[^/\s'"]+)(?=@)""")
"""User and password of a URI. After a colon, which a port may have too, all that a raw / or @ may belong to: up to the
last @ before a blank, a quote, another URI or an end tag of HTML."""
QUERY = re.compile(
    r"(?i)([?&](?:password|token|signature|x-amz-\w+|awsaccesskeyid|access_key\w*|secret\w*)=)([^&\s'\"]+)"
)
BY_NAME = re.compile(rf"(?:(?:[^:@/]*|{VARIABLE.pattern}):)?{VARIABLE.pattern}", re.ASCII)
"""Of these two what holds no secret itself."""
MIN_SECRET, MIN_VALUE = 4, 6
"""Shorter ones are words: to mask them would be to mask everything."""

OUR_WORDS = {
    *("finished", "diverged", "pruned", "failed", "running"),
    *("proxy", "target", "study", "transfers", "drifts", "abstains"),
}
"""What we say all the time is nobody's secret: hidden it would change answers and keep nothing."""

PLACES = ("output_dir", "data.path", "ledger.experiment")
"""Keys that name a place: what they come to stands in every answer, or nobody would find it."""
UNREAD = ("ledger.", "compute.", "output_dir", "description")
"""Keys of a recorded configuration that nobody reads: where their variable is not set, the name stays."""

_noted: set[str] = set()


def note(variables: Mapping[str, str]) -> None:
    """Remember which variables a configuration reads: `masked` hides their values from now on."""
    for path, text in variables.items():
        if path not in PLACES:
            _noted.update(name for name, _ in VARIABLE.findall(text))


def hidden(plain: Any, variables: Mapping[str, str]) -> Any:
    """Plain data with the texts of `variables`, by dotted path, in place of what they stand for."""
    return _mapped(plain, lambda path, leaf: variables.get(path, leaf)) if variables else plain


def resolved(plain: Any, variables: dict[str, str], *, strict: bool = True) -> Any:
    """What was recorded, made whole from today's environment; `variables` takes up what stood there, by dotted path.

    Those that it held before are the user's own. BadInput where a variable is not set, or is one that no ledger may
    ask for; not `strict`: its name stays.
    """
    own = dict(variables)

    def whole(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, str) or not (found := VARIABLE.findall(leaf)):
            return leaf
        for name, default in found:
            refused = SECRET_NAMES.search(name) and own.get(path) != leaf
            if refused or (name not in os.environ and not default):
                if not strict or path.startswith(UNREAD):
                    return leaf
                why = "whose name says secret, and your own does not" if refused else "which is not set: set it"
                raise BadInput(f"the recorded configuration has {path}={leaf[:80]}, {why}")
        variables[path] = leaf
        note({path: leaf})
        return value_of(leaf)

    return _mapped(plain, whole)


def recordable(plain: Any) -> Any:
    """A configuration for a record: its URIs without user and password, unless these are given by name.

    BadInput where such a value is read back from the record: keys hash it, and would no longer be found.
    """

    def shown(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, str) or (text := _without_credentials(leaf, by_name=True)) == leaf:
            return leaf
        if path.startswith(UNREAD):
            return text
        raise BadInput(
            f"{path}={_without_credentials(leaf)[:80]} holds a secret in a URI, and would be recorded:"
            " write ${oc.env:NAME} in its place, and set NAME"
        )

    return _mapped(plain, shown)


def value_of(text: str) -> Any:
    """What a recorded text stands for: a text, or under oc.decode a number, true, false or nothing."""
    decoded = DECODED.fullmatch(text)
    filled = VARIABLE.sub(lambda found: os.environ.get(found[1], found[2] or ""), decoded[1] if decoded else text)
    if (VARIABLE.fullmatch(text) and text.endswith(",null}")) and filled == "null":
        return None
    return _decoded(filled) if decoded else filled


def redact(text: str) -> str:
    """The text without any secret that this process knows of, and without user and password in a URI."""
    return _masked(text, _secrets())


def _masked(text: str, secrets: Mapping[str, str]) -> str:
    for value, shown in secrets.items():
        text = text.replace(value, shown)
    return _without_credentials(text)


def _without_credentials(text: str, *, by_name: bool = False) -> str:
    """The text with its URIs' secrets masked; `by_name`: not those that stand there as ${oc.env:NAME}."""

    def hide(found: re.Match[str]) -> str:
        return found[0] if by_name and BY_NAME.fullmatch(found[2]) else f"{found[1]}***"

    if "=" in text:  # first: an @ may stand in such a value
        text = QUERY.sub(hide, text)
    return CREDENTIALS.sub(hide, text) if "@" in text else text


def redact_plain(value: Any) -> Any:
    """As `masked`, for the texts in plain data on their way to a record or an answer; names stay."""
    return _masked_plain(value, _secrets())


def _masked_plain(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked_plain(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_plain(item, secrets) for item in value]
    return _masked(value, secrets) if isinstance(value, str) else value


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor or reverse its letters is written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, *, characters: int = 1000) -> str:
    """An error's text as the one line that it promises to be."""
    line = printable(" ".join(redact(text).split()))
    return line if len(line) <= characters else f"{line[: characters - 3]}..."


def _secrets() -> dict[str, str]:
    """Each value to be hidden, in each form that it may be printed in, and what stands for it; the longest first."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= MIN_SECRET and not _is_plain(value):
            found[value] = "***"
    for name in _noted:
        value = os.environ.get(name, "")
        if len(value) >= MIN_VALUE and not _is_plain(value):
            found.setdefault(value, f"${{oc.env:{name}}}")
    forms = {form: shown for value, shown in found.items() for form in _forms(value)}
    return dict(sorted(forms.items(), key=lambda pair: -len(pair[0])))


def _forms(value: str) -> Collection[str]:
    return {value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]}


def _is_plain(text: str) -> bool:
    """A number or a word of ours."""
    return _decoded(text) != text or text in OUR_WORDS


def _decoded(text: str) -> Any:
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except (ValueError, OverflowError):
            continue
        return number if math.isfinite(number) else text
    return text


def _mapped(value: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """Plain data with each leaf changed, given its dotted path."""
    prefix = f"{path}." if path else ""
    if isinstance(value, Mapping):
        return {key: _mapped(item, change, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change, f"{prefix}{i}") for i, item in enumerate(value)]
    return change(path, value)
