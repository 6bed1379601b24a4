"""The process that holds a lease, and whether it is still alive."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from muxfer import processes
from muxfer.config.study import LONGEST_LEASE_SECONDS

SILENT_TTLS = 10
"""A driver is shown as silent after this many times-to-live without a heartbeat. Two hosts' clocks may differ."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A driver's process. `boot` and `namespace` are empty on a system without /proc. `ttl_seconds` is its
    time-to-live. Another driver waits at least that long before it takes the holder for silent. `beat` is the time of
    its last heartbeat, by its host's clock, where the ledger knows it. It is shown to people and decides nothing.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    token: str
    since: str
    ttl_seconds: float = 0.0
    beat: datetime | None = None

    @classmethod
    def this_process(cls) -> "Holder":
        return cls(
            host=socket.gethostname(),
            boot=_boot_id(),
            namespace=processes.namespace(),
            pid=os.getpid(),
            started=str(processes.start_time(os.getpid()) or ""),
            token=secrets.token_hex(8),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    @classmethod
    def from_json(cls, text: str) -> "Holder":
        """Read what `to_json` wrote. ValueError or TypeError for any other text."""
        data = json.loads(text)
        values = {name: data[name] for name in cls.__dataclass_fields__ if name in data and name != "beat"}
        for name, value in values.items():
            if not isinstance(value, {"pid": int, "ttl_seconds": int | float}.get(name, str)):
                raise TypeError(f"{name} is {value!r}")
        holder = cls(**values)
        if holder.pid < 1 or not 0 <= holder.ttl_seconds <= LONGEST_LEASE_SECONDS:
            raise ValueError(f"pid is {holder.pid}, ttl_seconds {holder.ttl_seconds}")
        return holder

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if name != "beat"}, sort_keys=True)

    def alive(self) -> bool | None:
        """Whether the process lives. None if it is stopped, or if we cannot see it from here."""
        if not self.boot or (self.boot, self.namespace) != (_boot_id(), processes.namespace()):
            return None
        status = processes.status(self.pid)
        if status is None:
            return False if processes.gone(self.pid) else None
        state, _, started = status
        if str(started) != self.started or state in "ZX":
            return False
        return None if state in "Tt" else True

    def silent(self) -> bool:
        """Whether its last heartbeat is long ago, by the clocks of both hosts. Used where `alive` is None."""
        limit = timedelta(seconds=SILENT_TTLS * self.ttl_seconds)
        return self.beat is not None and datetime.now().astimezone() - self.beat > limit

    def __str__(self) -> str:
        return f"driver pid {self.pid} on host {self.host} has held it since {self.since}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
