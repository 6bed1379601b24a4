"""The cluster under the trials: start or join it, see that it lives, and end for certain what we started.

Ray's gcs and raylet are children of this process. With either dead every call into Ray hangs for a minute and more, so
nothing here asks Ray how it is: it looks at the process ids (at the port of a cluster that we joined).

The thread that calls `start` must live as long as the cluster: Ray asks the kernel to kill its processes when the
*thread* that started them ends (PR_SET_PDEATHSIG). That is also what ends them after a kill -9 of ours.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput, NoResources

OBJECT_STORE_BYTES = 100 * 2**20  # jobs and reports are kilobytes; the default takes 30 % of the memory
PROBE_SECONDS = 2.0
MARK = "muxfer-driver"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late call, after our shutdown, would start a second cluster
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints on stdout even at verbose=0
    "RAY_enable_metrics_collection": "0",
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_THRESHOLD_S": "60",
}
"""Set where the user has not: read by Ray at import, so before it."""


@dataclass(kw_only=True)
class Cluster:
    """A running cluster. `processes` are those that we started, by name; none when we joined."""

    address: str
    joined: bool
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    session_folder: Path | None = None
    _workers: set[tuple[int, int]] = field(default_factory=set)
    _probed: float = 0.0
    _silent: int = 0

    def dead(self) -> str | None:
        """What died, or None. Cheap enough for every turn of a loop; never blocks for more than a second."""
        for name in ("gcs_server", "raylet"):
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                return f"Ray's {name} (pid {process.pid}) died"
        now = time.monotonic()
        if now - self._probed < PROBE_SECONDS:
            return None
        self._probed = now
        if not self.joined:
            self._workers = self._find_workers()
            return None
        self._silent = 0 if answers(self.address, timeout_seconds=1.0) else self._silent + 1
        return f"Ray at {self.address} does not answer any more" if self._silent >= 3 else None

    def kill(self) -> None:
        """End every process that we started, by its id, in a fraction of a second; the driver is of no use afterwards.

        Touches nothing of a cluster that we joined: it ends a driver's trials when the driver is gone.
        """
        workers = self._workers | self._find_workers()
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for pid, started in workers:
            if _start_time(pid) == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        self.sweep()

    def claim(self) -> None:
        """Mark the session's folder as ours, and remove those whose driver was killed before it could."""
        if self.session_folder is None:
            return
        for mark in self.session_folder.parent.glob(f"session_*/{MARK}"):
            with contextlib.suppress(OSError, ValueError):
                host, pid, since = mark.read_text().split()
                if host == socket.gethostname() and _start_time(int(pid)) != int(since):
                    shutil.rmtree(mark.parent, ignore_errors=True)
        started = _start_time(os.getpid())
        if started is not None:
            (self.session_folder / MARK).write_text(f"{socket.gethostname()} {os.getpid()} {started}\n")

    def sweep(self) -> None:
        """Remove the session's folder: sockets, logs, Tune's state."""
        for _ in range(20):  # a process on its way out, or Tune's thread, may still write there
            if self.session_folder is None or not self.session_folder.exists():
                return
            shutil.rmtree(self.session_folder, ignore_errors=True)
            time.sleep(0.05)

    def _find_workers(self) -> set[tuple[int, int]]:
        raylet = self.processes.get("raylet")
        if raylet is None or raylet.poll() is not None:
            return set()
        return {(pid, started) for pid, parent, started in _process_table() if parent == raylet.pid}


def start(address: str | None) -> Cluster:
    """Start a private cluster on this machine, or join the one at `address`. NoResources when nothing answers there."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if address is not None:
        _expect_answer(address)
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what went wrong reaches the user in records and errors
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        context = ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        line = " ".join(str(error).split())[:300]
        raise NoResources(f"compute.address {address or 'local'}: Ray did not start ({line})") from error
    if address is not None:
        return Cluster(address=context.address_info["gcs_address"], joined=True)
    # Ray has no public name for the processes that it started; all_processes has been there since 1.0.
    node = ray._private.worker._global_node
    cluster = Cluster(
        address=context.address_info["gcs_address"],
        joined=False,
        processes={name: infos[0].process for name, infos in node.all_processes.items()},
        session_folder=Path(node.get_session_dir_path()),
    )
    cluster.claim()
    return cluster


def answers(address: str, *, timeout_seconds: float) -> bool:
    """Whether anything accepts a connection at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=timeout_seconds).close()
    except OSError:
        return False
    return True


def _expect_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise BadInput(
            f"compute.address {address!r}: expected host:port of a running Ray cluster's head (10.0.0.1:6379);"
            " leave it out for a private cluster on this machine"
        )
    # ray.init would try for a minute.
    if not answers(address, timeout_seconds=5.0):
        raise NoResources(
            f"compute.address {address}: nothing answers there; start it with `ray start --head`,"
            " or leave compute.address out for a private cluster on this machine"
        )


def _process_table() -> Iterator[tuple[int, int, int]]:
    """(pid, parent's pid, start time) of every process; nothing where there is no /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        status = _status(int(folder.name))
        if status is not None:
            yield int(folder.name), *status


def _status(pid: int) -> tuple[int, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    after_name = text[text.rindex(")") + 2 :].split()
    return int(after_name[1]), int(after_name[19])


def _start_time(pid: int) -> int | None:
    status = _status(pid)
    return status[1] if status else None
