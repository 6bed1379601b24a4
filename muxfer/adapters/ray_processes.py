"""The cluster under the trials: start or join it, see that it lives, and end for certain what we started.

Ray's gcs and raylet are children of this process. With either dead every call into Ray hangs for a minute and more, so
nothing here asks Ray how it is: it looks at the process ids (at the port of a cluster that we joined).

The thread that calls `start` must live as long as the cluster: Ray asks the kernel to kill its processes when the
*thread* that started them ends (PR_SET_PDEATHSIG). That is also what ends them after a kill -9 of ours.
"""

import contextlib
import gc
import logging
import os
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muxfer.adapters import ray_sessions
from muxfer.errors import BadInput, NoResources, TrialsFailed

OBJECT_STORE_BYTES = 100 * 2**20  # jobs and reports are kilobytes; the default takes 30 % of the memory
PROBE_SECONDS = 2.0
NEEDED = ("gcs_server", "raylet")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a late call, after our shutdown, would start a second cluster
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints on stdout even at verbose=0
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it answers SIGTERM first, and aborts where its trace takes 3 s
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
    """A running cluster. `processes` are those that we started, by name; none, and no `folder`, when we joined."""

    address: str
    joined: bool
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    folder: Path | None = None
    _probed: float = 0.0
    _silent: int = 0

    def dead(self) -> str | None:
        """What died, or None. Cheap enough for every turn of a loop; never blocks for more than a second."""
        for name in NEEDED:
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                return f"Ray's {name} (pid {process.pid}) died"
        now = time.monotonic()
        if not self.joined or now - self._probed < PROBE_SECONDS:
            return None
        self._probed = now
        self._silent = 0 if answers(self.address, timeout_seconds=1.0) else self._silent + 1
        return f"Ray at {self.address} does not answer any more" if self._silent >= 3 else None

    def listening(self) -> list[str]:
        """The addresses beyond loopback at which the processes listen that we started; nothing is known of others'."""
        import psutil

        found = set()
        for process in self.processes.values():
            with contextlib.suppress(psutil.Error):
                for one in psutil.Process(process.pid).net_connections(kind="tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.ip not in ("127.0.0.1", "::1"):
                        found.add(f"{one.laddr.ip}:{one.laddr.port}")
        return sorted(found)

    def kill(self) -> None:
        """End every process that we started, by its id, in a fraction of a second; the driver is of no use afterwards.

        Touches nothing of a cluster that we joined: it ends a driver's trials when the driver is gone.
        """
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        self.sweep()

    def sweep(self) -> None:
        """Remove the cluster's folder (sockets, logs, Tune's state), and what still works there."""
        if self.folder is not None:
            ray_sessions.remove(self.folder)


def start(address: str | None) -> Cluster:
    """Start a private cluster on this machine, or join the one at `address`. NoResources when nothing answers there."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if address is not None:
        _expect_answer(address)
    ray_sessions.sweep()
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what went wrong reaches the user in records and errors
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    folder = None
    if address is None:
        folder = ray_sessions.make()
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": f"{folder}/r"}
    try:
        context = ray.init(address=address or "local", **options)
    except Exception as error:  # a node that is slow to start under load raises a bare one
        died = died_at_start()
        if folder is not None:
            ray_sessions.remove(folder)
        if died is not None:
            raise TrialsFailed(f"{died}; run the same command again") from error
        line = " ".join(str(error).split())[:300]
        raise NoResources(f"compute.address {address or 'local'}: Ray did not start ({line})") from error
    if address is not None:
        return Cluster(address=context.address_info["gcs_address"], joined=True)
    with contextlib.suppress(OSError):  # Ray makes it readable for everybody on this host
        (Path.home() / ".ray" / "auth_token").chmod(0o600)
    # Ray has no public name for the processes that it started; all_processes has been there since 1.0.
    node = ray._private.worker._global_node
    return Cluster(
        address=context.address_info["gcs_address"],
        joined=False,
        processes={name: infos[0].process for name, infos in node.all_processes.items()},
        folder=folder,
    )


def shut_down() -> None:
    """Leave Ray. No garbage may hold one of its references then: whoever collects one meanwhile ends the process.

    Ray lets go of its worker in C++ first and in Python afterwards; a finalizer that comes between calls `exit(1)`.
    """
    import ray

    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collecting:
            gc.enable()


def died_at_start() -> str | None:
    """Which process of Ray died while Ray starts, or None: `ray.init` itself waits for the dead, a minute and more."""
    for place in Path("/proc").glob("[0-9]*"):
        found = ray_sessions.status(int(place.name))
        if found is not None and found[:2] == ("Z", os.getpid()):
            with contextlib.suppress(OSError):
                if (name := (place / "comm").read_text().strip()) in NEEDED:
                    return f"Ray's {name} (pid {place.name}) died"
    return None


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
