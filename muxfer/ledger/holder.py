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
"""After how many times-to-live without a heartbeat a driver is shown as silent: two hosts' clocks may differ."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A driver's process. `boot` and `namespace` are empty where the system does not tell (no /proc).

    `ttl_seconds` is its time-to-live: who waits with a shorter one would take a living holder for silent. `beat` is
    when its heart beat last, by its host's clock, where a ledger tells: for people to see, nothing is decided by it.
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
            namespace=_namespace(),
            pid=os.getpid(),
            started=str(processes.start_time(os.getpid()) or ""),
            token=secrets.token_hex(8),
            since=datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    @classmethod
    def from_json(cls, text: str) -> "Holder":
        """ValueError or TypeError where it is no holder's."""
        data = json.loads(text)
        told = {name: data[name] for name in cls.__dataclass_fields__ if name in data and name != "beat"}
        for name, value in told.items():
            expected = {"pid": int, "ttl_seconds": int | float}.get(name, str)
            if not isinstance(value, expected):
                raise TypeError(f"{name} is {value!r}")
        holder = cls(**told)
        if holder.pid < 1 or not 0 <= holder.ttl_seconds <= LONGEST_LEASE_SECONDS:
            raise ValueError(f"pid is {holder.pid}, ttl_seconds {holder.ttl_seconds}")
        return holder

    def to_json(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if name != "beat"}, sort_keys=True)

    def alive(self) -> bool | None:
        """Whether the process lives; None if that cannot be seen from here, or if it is stopped."""
        if not self.boot or (self.boot, self.namespace) != (_boot_id(), _namespace()):
            return None
        found = processes.status(self.pid)
        if found is None:
            return False if processes.gone(self.pid) else None
        state, _, started = found
        if str(started) != self.started or state in "ZX":
            return False
        return None if state in "Tt" else True

    def silent(self) -> bool:
        """Whether its heart has not beaten for long, by the clocks of two hosts: for a driver that cannot be seen."""
        patience = timedelta(seconds=SILENT_TTLS * self.ttl_seconds)
        return self.beat is not None and datetime.now().astimezone() - self.beat > patience

    def __str__(self) -> str:
        return f"driver pid {self.pid} on host {self.host} has held it since {self.since}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
