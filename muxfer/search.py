"""Who proposes what a study tries next.

A searcher asks in fixed rounds that depend on completed rounds alone: the same records give the same next round, so
a study that was killed goes on as the uninterrupted one would have.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

from muxfer.config import Search
from muxfer.trial import Record, Setting


class Searcher(Protocol):
    def ask(self, records: Sequence[Record]) -> list[Setting]:
        """The next round of settings, given the records of all rounds before it; empty when the search is over."""


def grid(search: Search) -> list[Setting]:
    """Every combination of the grids' values."""
    names = list(search.grids)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*search.grids.values())]
