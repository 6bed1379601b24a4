"""Calls that must be refused with BadInput."""

from collections.abc import Callable

from muxfer.errors import BadInput


def refusal(act: Callable[[], object]) -> str:
    """The message of the refusal; empty if the call was not refused."""
    try:
        act()
    except BadInput as error:
        return str(error)
    return ""


def assert_refused(act: Callable[[], object], *words: str) -> None:
    """The call must be refused, with a message that contains each of the words."""
    try:
        value = act()
    except BadInput as error:
        message = str(error)
    else:
        raise AssertionError(f"it was accepted: {str(value)[:200]}")
    assert all(word in message for word in words), message
