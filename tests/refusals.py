"""What a user reads of a refusal: one line, which holds what it must say."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from muxfer.errors import BadInput


@contextmanager
def refused(*words: str) -> Iterator["pytest.ExceptionInfo[BadInput]"]:
    """The block is refused in one line with these words."""
    with pytest.raises(BadInput) as caught:
        yield caught
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)
