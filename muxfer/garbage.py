"""A pause of Python's garbage collection that several threads may ask for. There is one switch for all threads."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_num_inside = 0
_was_on = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause it until the last block that asked has ended. If it was off before the first block, it stays off."""
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
