"""The Ray cluster that runs the trials: start or join it, see that it lives, and end every process that was started.

Ray's gcs and raylet are children of this process. When either is dead, every call into Ray hangs for a minute or more.
So this module never asks Ray for its state: it looks at the process ids, or at the port of a joined cluster.

The thread that calls `Cluster.start` must live as long as the cluster. Ray asks the kernel to kill its processes when
the *thread* that started them ends (PR_SET_PDEATHSIG). This also ends them after a kill -9 of the driver.
"""

import contextlib
import gc
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muxfer.errors import BadInput, NoResources, TrialsFailed
from muxfer.executors import ray_sessions
from muxfer.garbage import collection_paused

OBJECT_STORE_BYTES = 100 * 2**20  # jobs and updates are kilobytes; the default takes 30 % of the memory
PROBE_SECONDS = 2.0
MAX_FAILED_PROBES = 3
NEEDED = ("gcs_server", "raylet")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a call after the shutdown would start a second cluster
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints on stdout even at verbose=0
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it catches SIGTERM first, and aborts when its trace takes 3 s
    "RAY_prestart_worker_first_driver": "0",  # a driver would wait seconds for workers that the raylet prestarts
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_THRESHOLD_S": "60",
}
"""Defaults for Ray. Ray reads them at import, so they are set before it. A value that the user has set stays."""


class Cluster:
    """A private cluster on this machine, or the running one at `address`. It is started once.

    One thread starts it. Any other thread may watch it and end it at the same time. `processes` holds by name each
    process that was started, from its start on. It is empty for a joined cluster, which has no `folder` either. Raises
    NoResources when the folder can't be made.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = ray_sessions.make_folder() if address is None else None
        self._joined = False
        self._probed_at = 0.0
        self._num_failed_probes = 0

    def start(self) -> None:
        """Start or join the cluster. NoResources: nothing answers at its address. TrialsFailed: a process died."""
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        if self.address is not None:
            _validate_address(self.address)
        ray_sessions.remove_abandoned()
        import ray
        from ray.job_config import JobConfig

        logging.getLogger("ray").setLevel(logging.CRITICAL)  # the user sees failures in records and errors
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        options["job_config"] = JobConfig()
        options["job_config"]._py_driver_sys_path = _AlwaysEmpty()
        if self.folder is not None:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"_temp_dir": f"{self.folder}/r"}
        try:
            with self._mark_processes():
                context = ray.init(address=self.address or "local", **options)
        except Exception as error:  # a node that starts slowly under load raises a bare Exception
            death = self.dead()
            if self.folder is not None:
                ray_sessions.end_session(self.folder)
            if death is not None:
                raise TrialsFailed(f"{death}; run the same command again") from error
            line = " ".join(str(error).split())[:300]
            raise NoResources(f"compute.address {self.address or 'local'}: Ray did not start ({line})") from error
        self._joined = self.address is not None
        self.address = context.address_info["gcs_address"]
        if self.folder is not None:
            with contextlib.suppress(OSError):  # Ray lets every user of this host read the token
                (Path.home() / ".ray" / "auth_token").chmod(0o600)

    def dead(self) -> str | None:
        """Say which process died, or return None. Blocks for a second at most, so a loop may call it at every turn."""
        for name in NEEDED:
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                return f"Ray's {name} (pid {process.pid}) died"
        now = time.monotonic()
        if not self._joined or now - self._probed_at < PROBE_SECONDS:
            return None
        self._probed_at = now
        alive = accepts_connections(str(self.address), timeout_seconds=1.0)
        self._num_failed_probes = 0 if alive else self._num_failed_probes + 1
        failed = self._num_failed_probes >= MAX_FAILED_PROBES
        return f"Ray at {self.address} does not answer any more" if failed else None

    def listening(self) -> list[str]:
        """The addresses beyond loopback at which the started processes listen. A joined cluster's are not known."""
        import psutil

        addresses = set()
        for process in self.processes.values():
            with contextlib.suppress(psutil.Error):
                for connection in psutil.Process(process.pid).net_connections(kind="tcp"):
                    local = connection.laddr
                    if connection.status == psutil.CONN_LISTEN and local.ip not in ("127.0.0.1", "::1"):
                        addresses.add(f"{local.ip}:{local.port}")
        return sorted(addresses)

    def shut_down(self) -> None:
        """Leave Ray, in the thread that started it, and remove its folder. No garbage may hold one of Ray's references
        at that time. Ray frees its worker first in C++ and then in Python, and a finalizer that runs in between calls
        `exit(1)`.
        """
        import ray

        with collection_paused():
            gc.collect()
            ray.shutdown()
        self._remove_folder()

    def kill(self) -> None:
        """Kill every process that was started, by its id. Ray is unusable then. A joined cluster is left alone."""
        started = list(self.processes.values())
        for process in started:
            if process.poll() is None:
                process.kill()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the cluster's folder (sockets, logs, Tune's state), and end the processes that still use it."""
        if self.folder is not None:
            ray_sessions.end_session(self.folder)

    @contextlib.contextmanager
    def _mark_processes(self) -> Iterator[None]:
        """Within this context each process that Ray starts is recorded, marked, and put in its own process group.

        In the driver's group it would get the signals that are meant for the driver. And if the raylet ended while the
        driver registers with it, Ray would end the driver too, with exit code 1. Ray has no public way to do this: so
        the class with which Ray starts its processes is replaced.
        """
        from ray._private import services

        cluster, original = self, services.ConsolePopen

        class MarkedProcess(original):  # type: ignore[misc, valid-type]
            def __init__(self, command: Sequence[str], **options: Any) -> None:
                if ray_sessions.is_ending():
                    raise TrialsFailed("stopped by a signal while Ray started")
                environment = {**options.pop("env"), ray_sessions.MARK: str(cluster.folder)}
                super().__init__(command, env=environment, process_group=0, **options)
                cluster.processes[Path(command[0]).name] = self

        services.ConsolePopen = MarkedProcess
        try:
            yield
        finally:
            services.ConsolePopen = original


class _AlwaysEmpty(list[str]):
    """The folders that Ray puts first on its workers' import path: always none. Ray would add the folder that the
    command was typed in. There, a stray torch.py would be imported instead of torch, and another version of muxfer
    instead of this one. Plugins pass their own folder (`muxfer.models.plugins`).
    """

    def extend(self, folders: Iterable[str]) -> None:
        pass


def accepts_connections(address: str, *, timeout_seconds: float) -> bool:
    """Whether anything accepts a connection at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=timeout_seconds).close()
    except OSError:
        return False
    return True


def _validate_address(address: str) -> None:
    """Raise BadInput for what is no address, and NoResources when nothing answers there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise BadInput(
            f"compute.address {address!r}: expected host:port of a running Ray cluster's head (10.0.0.1:6379);"
            " leave it out for a private cluster on this machine"
        )
    # ray.init would keep trying for a minute.
    if not accepts_connections(address, timeout_seconds=5.0):
        raise NoResources(
            f"compute.address {address}: nothing answers there; start it with `ray start --head`,"
            " or leave compute.address out for a private cluster on this machine"
        )
