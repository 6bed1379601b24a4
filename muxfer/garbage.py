"""Garbage collection, put off for a while by whoever needs that, in whatever thread: it is one switch for all."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_num_inside = 0
_was_on = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Put it off until the last one who is inside leaves; where it was off before the first came it stays so."""
    global _num_inside, _was_on
    with _lock:
        if not _num_inside:
            _was_on = gc.isenabled()
            gc.disable()
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _was_on and not _num_inside:
                gc.enable()
