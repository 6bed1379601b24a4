"""Values from the environment: recorded by the name of their variable, and redacted in every text that leaves.

A text of a configuration may hold ${oc.env:NAME}. Trial keys hash its value, so a study is the same however its
configuration was written. A record holds only the name (`with_variable_names`). When it is read, today's environment
fills in the value (`with_values`). A ledger is not trusted with secrets: a recorded variable whose name says secret is
not filled in. In addition, everything that is printed, reported or recorded passes `redact`.
"""

import html
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
"""User and password of a URI. A raw / or @ after a colon may belong to the password. So the match goes up to the last @
before a blank, a quote, another URI or an end tag of HTML. A port has a colon too, but no @ follows it."""
QUERY = re.compile(
    r"(?i)([?&](?:password|token|signature|x-amz-\w+|awsaccesskeyid|access_key\w*|secret\w*)=)([^&\s'\"]+)"
)
BY_NAME = re.compile(rf"(?:(?:[^:@/]*|{VARIABLE.pattern}):)?{VARIABLE.pattern}", re.ASCII)
"""Matches of CREDENTIALS and QUERY that hold only names of variables, and so no secret."""
MIN_SECRET, MIN_VALUE = 4, 6  # Shorter values are not redacted: they are words that appear everywhere

OUR_WORDS = {"finished", "diverged", "failed", "running", "proxy", "target", "study", "transfers", "drifts", "abstains"}
"""muxfer's own words are never redacted. That would change results and protect nothing."""
PLACES = ("output_dir", "data.path", "ledger.experiment")
"""Keys that name a place. Their values are always shown, or nobody would find that place."""
UNUSED = ("ledger.", "compute.", "output_dir", "description")
"""Keys that are not used when they come out of a record. If their variable is not set, its name stays."""
_variables: set[str] = set()  # Names of the variables that configurations have read in this process


def remember_variables(variables: Mapping[str, str]) -> None:
    """Remember which variables a configuration reads. From now on `redact` replaces their values."""
    for path, text in variables.items():
        if path not in PLACES:
            _variables.update(name for name, _ in VARIABLE.findall(text))


def with_variable_names(plain: Any, variables: Mapping[str, str]) -> Any:
    """Plain data with the texts of `variables`, by dotted path, in place of their values."""
    return _mapped(plain, lambda path, leaf: variables.get(path, leaf)) if variables else plain


def with_values(plain: Any, variables: dict[str, str], *, strict: bool = True) -> Any:
    """Recorded data with the values of today's environment. Each replaced text is added to `variables`, by dotted path.
    The texts that `variables` holds before the call are the user's own. BadInput if a variable is not set, or if its
    name says secret and the user's own configuration does not have it. If not `strict`, its name stays instead.
    """
    own = dict(variables)

    def fill(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, str) or not (matches := VARIABLE.findall(leaf)):
            return leaf
        for name, default in matches:
            refused = SECRET_NAMES.search(name) and own.get(path) != leaf
            if refused or (name not in os.environ and not default):
                if not strict or path.startswith(UNUSED):
                    return leaf
                secret = "whose name says secret: to use it, write it in your own configuration too"
                why = secret if refused else "which is not set: set it"
                raise BadInput(f"the recorded configuration has {path}={leaf[:80]}, {why}")
        variables[path] = leaf
        remember_variables({path: leaf})
        return _value(leaf)

    return _mapped(plain, fill)


def recordable(plain: Any) -> Any:
    """A configuration that may be recorded: its URIs without user and password, unless variables stand for these.
    BadInput if a value would change that is read back from the record: keys hash it, so no trial would be found.
    """

    def strip(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, str) or (text := _without_credentials(leaf, by_name=True)) == leaf:
            return leaf
        if path.startswith(UNUSED):
            return text
        why = f"{path}={_without_credentials(leaf)[:80]} holds a secret in a URI, and would be recorded"
        raise BadInput(f"{why}: write ${{oc.env:NAME}} in its place, and set NAME")

    return _mapped(plain, strip)


def _value(text: str) -> Any:
    """The value of a recorded text: a text, or under oc.decode also a number, true, false or null."""
    decoded = DECODED.fullmatch(text)
    filled = VARIABLE.sub(lambda match: os.environ.get(match[1], match[2] or ""), decoded[1] if decoded else text)
    if (VARIABLE.fullmatch(text) and text.endswith(",null}")) and filled == "null":
        return None
    return _decoded(filled) if decoded else filled


def redact(text: str) -> str:
    """The text without the secrets that this process knows, and without user and password in a URI."""
    return _redact(text, _secrets())


def _redact(text: str, secrets: Mapping[str, str]) -> str:
    for value, replacement in secrets.items():
        text = text.replace(value, replacement)
    return _without_credentials(text)


def _without_credentials(text: str, *, by_name: bool = False) -> str:
    """The text with *** for the secrets in its URIs. With `by_name`, a secret written as ${oc.env:NAME} stays."""

    def hide(match: re.Match[str]) -> str:
        return match[0] if by_name and BY_NAME.fullmatch(match[2]) else f"{match[1]}***"

    if "=" in text:  # the query comes first: its value may hold an @
        text = QUERY.sub(hide, text)
    return CREDENTIALS.sub(hide, text) if "@" in text else text


def redact_plain(value: Any) -> Any:
    """Redact every text in plain data that goes to a record or to stdout. The names of mappings stay."""
    secrets = _secrets()
    return _mapped(value, lambda _, leaf: _redact(leaf, secrets) if isinstance(leaf, str) else leaf)


def printable(text: str) -> str:
    """Text that is safe on a terminal: characters that move the cursor or reverse letters are written as escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, *, characters: int = 1000) -> str:
    """An error's text in one printable line, redacted and cut."""
    line = printable(" ".join(redact(text).split()))
    return line if len(line) <= characters else f"{line[: characters - 3]}..."


def _secrets() -> dict[str, str]:
    """The replacement of each value to be redacted, in every form it may be printed in. The longest come first."""
    replacements: dict[str, str] = {}
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= MIN_SECRET and not _is_plain(value):
            replacements[value] = "***"
    for name in _variables:
        value = os.environ.get(name, "")
        if len(value) >= MIN_VALUE and not _is_plain(value):
            replacements.setdefault(value, f"${{oc.env:{name}}}")
    forms = {form: replacement for value, replacement in replacements.items() for form in _forms(value)}
    return dict(sorted(forms.items(), key=lambda pair: -len(pair[0])))


def _forms(value: str) -> Collection[str]:
    """The value as plain text and as written in a URI, in JSON, in Python, in HTML by Python and in HTML by Jinja."""
    in_html = html.escape(value)
    by_jinja = in_html.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    return {value, quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1], in_html, by_jinja}


def _is_plain(text: str) -> bool:
    """Whether the text is a number or one of OUR_WORDS."""
    return _decoded(text) != text or text in OUR_WORDS


def _decoded(text: str) -> Any:
    if (word := text.lower()) in ("true", "false", "null"):
        return json.loads(word)
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
