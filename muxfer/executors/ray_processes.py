"""The cluster under the trials: start or join it, see that it lives, and end for certain what we started.

Ray's gcs and raylet are children of this process. With either dead every call into Ray hangs for a minute and more, so
nothing here asks Ray how it is: it looks at the process ids (at the port of a cluster that we joined).

The thread that calls `Cluster.start` must live as long as the cluster: Ray asks the kernel to kill its processes when
the *thread* that started them ends (PR_SET_PDEATHSIG). That is also what ends them after a kill -9 of ours.
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
    "RAY_prestart_worker_first_driver": "0",  # a driver waits seconds for the prestarted, at the raylet's mercy
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_WARN_THRESHOLD_S": "60",
}
"""Set where the user has not: read by Ray at import, so before it."""


class Cluster:
    """A cluster of this process's own on this machine, or the running one at `address`; to be started once.

    One thread starts it; any other may watch it and end it meanwhile. `processes` are those that were started, by name,
    each from its birth on; none, and no `folder`, where a cluster is joined. NoResources when its folder can't be made.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = ray_sessions.make_folder() if address is None else None
        self._joined = False
        self._probed = 0.0
        self._silent = 0

    def start(self) -> None:
        """Start it, or join it. NoResources when nothing answers there, TrialsFailed when it dies meanwhile."""
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        if self.address is not None:
            _expect_answer(self.address)
        ray_sessions.remove_abandoned()
        import ray
        from ray.job_config import JobConfig

        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what went wrong reaches the user in records and errors
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
        options["job_config"] = JobConfig()
        options["job_config"]._py_driver_sys_path = _Fixed()
        if self.folder is not None:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"_temp_dir": f"{self.folder}/r"}
        try:
            with self._bearing():
                context = ray.init(address=self.address or "local", **options)
        except Exception as error:  # a node that is slow to start under load raises a bare one
            died = self.dead()
            if self.folder is not None:
                ray_sessions.end_session(self.folder)
            if died is not None:
                raise TrialsFailed(f"{died}; run the same command again") from error
            line = " ".join(str(error).split())[:300]
            raise NoResources(f"compute.address {self.address or 'local'}: Ray did not start ({line})") from error
        self._joined = self.address is not None
        self.address = context.address_info["gcs_address"]
        if self.folder is not None:
            with contextlib.suppress(OSError):  # Ray makes it readable for everybody on this host
                (Path.home() / ".ray" / "auth_token").chmod(0o600)

    def dead(self) -> str | None:
        """What died, or None. Cheap enough for every turn of a loop; never blocks for more than a second."""
        for name in NEEDED:
            process = self.processes.get(name)
            if process is not None and process.poll() is not None:
                return f"Ray's {name} (pid {process.pid}) died"
        now = time.monotonic()
        if not self._joined or now - self._probed < PROBE_SECONDS:
            return None
        self._probed = now
        self._silent = 0 if answers(str(self.address), timeout_seconds=1.0) else self._silent + 1
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

    def shut_down(self) -> None:
        """Leave Ray, in the thread that started it, and remove what it leaves.

        No garbage may hold one of Ray's references then: Ray lets go of its worker in C++ first and in Python
        afterwards, and a finalizer that comes between calls `exit(1)`.
        """
        import ray

        with collection_paused():
            gc.collect()
            ray.shutdown()
        self._sweep()

    def kill(self) -> None:
        """End every process that we started, by its id, in a fraction of a second; the driver is of no use afterwards.

        Touches nothing of a cluster that we joined: it ends a driver's trials when the driver is gone.
        """
        born = list(self.processes.values())
        for process in born:
            if process.poll() is None:
                process.kill()
        for process in born:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        self._sweep()

    def _sweep(self) -> None:
        """Remove the cluster's folder (sockets, logs, Tune's state), and end what still works there."""
        if self.folder is not None:
            ray_sessions.end_session(self.folder)

    @contextlib.contextmanager
    def _bearing(self) -> Iterator[None]:
        """Meanwhile each process that Ray starts is noted here at once, marked, and put in a process group of its own.

        In ours it would get the signals that are meant for us, and where the raylet ends while this process registers
        with it, Ray ends this process too, with 1. Ray has no public way to any of it: this is the class that it
        starts its processes with.
        """
        from ray._private import services

        cluster, plain = self, services.ConsolePopen

        class Process(plain):  # type: ignore[misc, valid-type]
            def __init__(self, command: Sequence[str], **options: Any) -> None:
                if ray_sessions.is_ending():
                    raise TrialsFailed("told to stop while Ray started")
                environment = {**options.pop("env"), ray_sessions.MARK: str(cluster.folder)}
                super().__init__(command, env=environment, process_group=0, **options)
                cluster.processes[Path(command[0]).name] = self

        services.ConsolePopen = Process
        try:
            yield
        finally:
            services.ConsolePopen = plain


class _Fixed(list[str]):
    """The folders that Ray puts before all others on its workers' path: none.

    It adds the one that the command was typed in, where a torch.py of somebody's would be taken for torch, and another
    version of muxfer for this one. Plugins bring their folder along (`muxfer.plugins`).
    """

    def extend(self, folders: Iterable[str]) -> None:
        pass


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
