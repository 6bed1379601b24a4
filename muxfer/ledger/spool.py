"""The spool: a file on disk that keeps operations until the ledger has taken them."""

import contextlib
import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput
from muxfer.ledger.base import Operation

_logger = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20  # How much of a spool is read at a time, at most


class Spool:
    """An append-only file of operations, one JSON object a line. A second file holds the acknowledged offset.

    The first operation creates the file, and the last acknowledgement removes it. A study with nothing to write leaves
    nothing behind. A line that a crash cut short is dropped: nobody was promised that it was written. Two threads may
    use a spool at once. BadInput if a folder, a pipe or a link stands in the place of its files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._acknowledged_path = path.with_suffix(".offset")
        self._lock = threading.RLock()
        self._file: Any = None
        self._unsynced = False
        self._waiting: list[bytes] = []
        self._taken = 0
        self._validate_files()
        self.appended = self._length_of_whole_lines()
        self.acknowledged = self._read_offset()

    @property
    def pending_bytes(self) -> int:
        with self._lock:
            return self.appended - self.acknowledged + sum(map(len, self._waiting))

    @property
    def in_memory(self) -> bool:
        """Whether an operation waits in memory because the disk did not take it."""
        return bool(self._waiting)

    def append(self, operation: Operation) -> None:
        """Write one operation to the file. If the disk is full, it stays in memory and is read from there."""
        line = json.dumps(operation, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            self._waiting.append(line)
            with contextlib.suppress(OSError):
                self._write_waiting()

    def sync(self) -> None:
        """Force everything appended to the disk. Raises OSError if the disk does not take it."""
        with self._lock:
            self._write_waiting()
            if self._unsynced:
                os.fsync(self._file.fileno())
                self._unsynced = False

    def read(self, limit_bytes: int = CHUNK_BYTES) -> tuple[list[Operation], int]:
        """The oldest waiting operations, up to the end of the one at `limit_bytes`, and the offset to acknowledge."""
        with self._lock:
            start, stop = self.acknowledged, self.appended
            if start == stop:
                self._taken = len(self._waiting)
                return [json.loads(line) for line in self._waiting], -self._taken
        with self.path.open("rb") as file:
            file.seek(start)
            chunk = file.read(min(limit_bytes, stop - start))
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
        operations: list[Operation] = []
        for line in chunk.splitlines():
            operation = None
            with contextlib.suppress(ValueError, RecursionError):
                operation = json.loads(line)
            if isinstance(operation, dict):
                operations.append(operation)
            else:  # the disk or somebody else has changed the line
                _logger.warning("a damaged line of %s was skipped: %r", self.path, line[:80])
        return operations, start + len(chunk)

    def acknowledge(self, offset: int) -> None:
        with self._lock:
            if offset < 0:  # read from memory
                del self._waiting[: self._taken]
                self._taken = 0
                return
            self.acknowledged = offset
            # The file is missing if a driver that took us over has applied and removed it.
            if offset == self.appended or not self.path.exists():
                self._remove()
                return
            temporary = self._acknowledged_path.with_suffix(".tmp")
            temporary.write_text(str(offset))
            temporary.replace(self._acknowledged_path)

    def give_back(self) -> None:
        """End a read without acknowledging it. Operations that are only in memory may go to the disk again."""
        with self._lock:
            self._taken = 0

    def discard(self) -> None:
        """Delete everything that waits, for good."""
        with self._lock:
            self._waiting.clear()
            self._remove()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            if self.appended == self.acknowledged:  # the file has nothing of use, as after a full disk took no line
                self.path.unlink(missing_ok=True)
                self._acknowledged_path.unlink(missing_ok=True)

    def _write_waiting(self) -> None:
        if not self._waiting or self._taken:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.appended:
                self._acknowledged_path.unlink(missing_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self.appended)
        while self._waiting:
            line = self._waiting[0]
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk took only a part of a line")
            except OSError:
                self._file.truncate(self.appended)
                raise
            self._waiting.pop(0)
            self.appended += len(line)
            self._unsynced = True

    def _remove(self) -> None:
        self.close()
        for path in self._files():
            path.unlink(missing_ok=True)
        self.appended = self.acknowledged = 0
        self._unsynced = False

    def _files(self) -> tuple[Path, Path, Path]:
        return self.path, self._acknowledged_path, self._acknowledged_path.with_suffix(".tmp")

    def _validate_files(self) -> None:
        for path in self._files():
            try:
                if stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK | os.W_OK):
                    continue
            except FileNotFoundError:
                continue
            why = f"{path} is no file that muxfer may read and write: expected a spool of muxfer's, or nothing"
            raise BadInput(f"{why}; move it away and run the same command again")

    def _length_of_whole_lines(self) -> int:
        """The length of the file in bytes, up to the end of its last whole line."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                while size:
                    start = max(0, size - CHUNK_BYTES)
                    file.seek(start)
                    if (end := file.read(size - start).rfind(b"\n")) >= 0:
                        return start + end + 1
                    size = start
                return 0
        except FileNotFoundError:
            return 0

    def _read_offset(self) -> int:
        """The acknowledged offset. An impossible one reads as 0: all is applied again, which does no harm."""
        try:
            offset = int(self._acknowledged_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return offset if 0 <= offset <= self.appended else 0
