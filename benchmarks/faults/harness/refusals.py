"""Refusals."""

from collections.abc import Callable

from muxfer.errors import BadInput


def refusal(act: Callable[[], object]) -> str:
    """The line with which it is refused; empty if it is not."""
    try:
        act()
    except BadInput as error:
        return str(error)
    return ""


def assert_refused(act: Callable[[], object], *what: str) -> None:
    try:
        got = act()
    except BadInput as error:
        told = str(error)
    else:
        raise AssertionError(f"it was taken: {str(got)[:200]}")
    assert all(word in told for word in what), told
