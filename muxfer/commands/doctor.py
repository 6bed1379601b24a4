"""`muxfer doctor`: can a sweep run here safely? Each part is tested for real, and each fault comes with a remedy.

It starts Ray or joins the cluster at compute.address, queries the ledger and measures the disks. It writes nothing,
apart from what Ray writes when it starts.
"""

import contextlib
import http.client
import importlib.metadata
import ipaddress
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from muxfer.commands.result import CommandResult
from muxfer.config.study import Compute
from muxfer.errors import MuxferError, NotConfirmed
from muxfer.executors import ray_sessions
from muxfer.ledger.tracking_uri import redact_uri, sqlite_path
from muxfer.report.terminal import table_lines
from muxfer.study.resolve import Request, resolve_without_data, tracking_uri
from muxfer.study.session import open_ledger

GB = 1e9
LITTLE_DISK_GB = 2.0
SLOT_MEMORY_GB = 1.0
"""Memory for the process of a trial: Python, torch and Ray, without its model. A rule of thumb, not measured."""
SHARED_MEMORY_GB = 0.12  # The size of Ray's object store as we start it, and a little more
MIN_OPEN_FILES = 1024
NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "ceph", "fuse.sshfs", "9p"}
VERSION = re.compile(r"\d+(\.\w+)*(\+[\w.]+)?", re.ASCII)
NO_RESPONSE = (OSError, http.client.HTTPException)
"""Errors of a request to a server that is down, or that does not speak HTTP."""
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One tested part, its state, and a remedy if the state is not ok."""

    part: str
    state: State
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """The keys of the command's JSON, which scripts read."""
        return {"part": self.part, "state": self.state, "told": self.message, "mend": self.remedy}


def finding(part: str, state: State, message: str, remedy: str = "") -> Finding:
    """A finding of one part. The remedy is left out where the part is ok."""
    return Finding(part=part, state=state, message=message, remedy="" if state == "ok" else remedy)


def doctor(name: str, overrides: Sequence[str]) -> CommandResult:
    """Test everything that a sweep needs. `name` selects the ledger, folder and cluster. Exit 6 if a part fails."""
    request = resolve_without_data(name, overrides)
    tests: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "machine": lambda: machine(request),
        "ray": lambda: cluster(request.config.compute),
        "ledger": lambda: ledger(request),
    }
    findings: list[Finding] = []
    for part, test in tests.items():
        try:
            findings += test()
        except MuxferError as error:
            findings.append(finding(part, "fail", str(error)))
    rows = []
    for one in findings:
        rows.append([one.state, one.part, one.message])
        if one.remedy:
            rows.append(["", "", one.remedy])
    failed = sum(one.state == "fail" for one in findings)
    verdict = "fail" if failed else "pass"
    last = f"fail: {failed} of {len(findings)} failed" if failed else "pass: a sweep will run here"
    return CommandResult(
        data={"verdict": verdict, "findings": [one.to_dict() for one in findings]},
        text="\n".join([*table_lines(rows, align="lll"), last]),
        exit_code=NotConfirmed.exit_code if failed else 0,
    )


def versions() -> Iterator[Finding]:
    """Whether each required package is installed in a supported version."""
    from packaging.requirements import Requirement

    installed_versions, wrong = [], []
    for line in importlib.metadata.requires("muxfer") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if requirement.name in ("torch", "ray", "optuna", "mlflow", "hydra-core"):
            installed_versions.append(f"{requirement.name} {installed}")
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, expected {requirement.specifier}")
    for fault in wrong:
        yield finding("versions", "fail", fault, "pip install -U muxfer")
    if not wrong:
        yield finding("versions", "ok", f"python {platform.python_version()}, {', '.join(installed_versions)}")


def machine(request: Request) -> Iterator[Finding]:
    """Memory for the slots, disks, shared memory, open files and devices."""
    import psutil

    slots = request.config.compute.slots or len(os.sched_getaffinity(0))
    available = psutil.virtual_memory().available / GB
    enough = available >= slots * SLOT_MEMORY_GB
    remedy = f"fewer slots, compute.slots={max(1, int(available / SLOT_MEMORY_GB))}"
    yield finding("memory", "ok" if enough else "warn", f"{available:.1f} GB available for {slots} slots", remedy)
    for what, folder in (("output", request.folder), ("Ray's", ray_sessions.parent_folder())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free / GB
        elsewhere = "output_dir=FOLDER" if what == "output" else "RAY_TMPDIR"
        if not os.access(existing, os.W_OK | os.X_OK):
            message = f"{existing} can't be written, but {what} files go there"
            yield finding("disk", "fail", message, f"give another folder: {elsewhere}")
        remedy = f"free some, or give another folder: {elsewhere}"
        state: State = "ok" if free >= LITTLE_DISK_GB else "warn"
        yield finding("disk", state, f"{free:.1f} GB free for {what} files", remedy)
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").free / GB
        remedy = "Ray will use the disk instead, slowly; in a container: docker run --shm-size=1g"
        state = "ok" if shared >= SHARED_MEMORY_GB else "warn"
        yield finding("memory", state, f"{shared:.1f} GB free in /dev/shm", remedy)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = "warn" if 0 <= files < MIN_OPEN_FILES else "ok"
    yield finding("files", state, f"{files} files may be open at once", f"ulimit -n {most}")
    yield from _devices(request.config.compute)


def _devices(compute: Compute) -> Iterator[Finding]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    message = ", ".join(names) if names else f"no GPU; {len(os.sched_getaffinity(0))} cores"
    lacking = compute.device == "cuda" and not names
    remedy = "use compute.device=auto, or a machine that has one (nvidia-smi shows what the driver sees)"
    yield finding("devices", "fail" if lacking else "ok", message, remedy)


def cluster(compute: Compute) -> Iterator[Finding]:
    """Whether Ray starts, or can be joined, with the requested slots, and who else could use it."""
    from muxfer.executors.ray_tune import RayExecutor

    with tempfile.TemporaryDirectory(prefix="muxfer-doctor-") as folder:
        began = time.monotonic()
        executor = RayExecutor(compute, folder=Path(folder))
        try:
            seconds = time.monotonic() - began
            how = "started" if compute.address is None else f"joined at {compute.address}"
            listening = executor.listening()
        finally:
            executor.close()
    yield finding("ray", "ok", f"{how} in {seconds:.1f} s, {executor.slots} x {executor.device}")
    if compute.address is not None:
        message = "its token and the addresses where it listens were set where it was started"
        remedy = "start its nodes with RAY_AUTH_MODE=token, in a private network"
        yield finding("ray", "warn", f"{message}, and can't be tested from here", remedy)
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        yield finding("ray", "ok", "asks for a token")
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if token.exists() and token.stat().st_mode & 0o077:
            yield finding("ray", "warn", "other users of this host can read its token", f"chmod 600 {token}")
    elif listening:
        message = f"asks for no token and listens beyond this machine ({', '.join(listening[:3])}): others can run code"
        remedy = "unset RAY_AUTH_MODE, or RAY_AUTH_MODE=token, on every node and for muxfer"
        yield finding("ray", "fail", message, remedy)
    else:
        yield finding("ray", "ok", "asks for no token, and listens on this machine only")


def ledger(request: Request) -> Iterator[Finding]:
    """Whether the ledger answers, how fast, and whether it demands a login."""
    uri = tracking_uri(request.config)
    where = redact_uri(uri)
    database = sqlite_path(uri)
    if database is not None:
        if not database.exists():
            yield finding("ledger", "ok", f"{where} does not exist yet: the first sweep creates it")
        if (kind := _file_system(database)) in NETWORK_DISKS:
            message = f"{where} lies on a network disk ({kind}), where SQLite's locks may not hold"
            yield finding("ledger", "fail", message, "an MLflow server, ledger.tracking_uri=http://...")
        existing = next(place for place in (database, *database.parents) if place.exists())
        if not os.access(existing, os.W_OK):
            remedy = "give another, ledger.tracking_uri=sqlite:///FILE.db"
            yield finding("ledger", "fail", f"{existing} can't be written", remedy)
        if not database.exists():
            return
    began = time.monotonic()
    with open_ledger(request) as opened:
        studies = opened.studies()
    seconds = time.monotonic() - began
    message = f"{where} answers: {len(studies)} studies, read in {seconds:.1f} s, with the time to connect"
    yield finding("ledger", "ok", message)
    if uri.startswith("http"):
        yield from _server(uri, where)


def _server(uri: str, where: str) -> Iterator[Finding]:
    parts = urlsplit(uri)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    with contextlib.suppress(*NO_RESPONSE), urllib.request.urlopen(f"{bare}/version", timeout=5) as response:
        yield _version_finding(response.read(100).decode(errors="replace").strip())
    if _loopback(parts.hostname or ""):
        return
    try:
        urllib.request.urlopen(f"{bare}/api/2.0/mlflow/experiments/search?max_results=1", timeout=5).close()
    except urllib.error.HTTPError as error:
        is_closed = error.code in (401, 403)
        yield finding("ledger", "ok" if is_closed else "warn", f"answers {error.code} without credentials")
    except NO_RESPONSE as error:
        yield finding("ledger", "warn", f"could not be tested without credentials ({error})")
    else:
        remedy = "mlflow server --app-name basic-auth, or a proxy that demands a login, or a private network"
        yield finding("ledger", "fail", "anyone who reaches it may read and write", remedy)
    if parts.scheme == "http" and ("@" in parts.netloc or os.environ.get("MLFLOW_TRACKING_PASSWORD")):
        yield finding("ledger", "warn", f"{where} takes the password unencrypted", "serve it over https")


def _version_finding(server_version: str) -> Finding:
    """Compare a server's version with ours. People paste the remedy into a shell, so only a real version enters it."""
    ours = importlib.metadata.version("mlflow")
    if not VERSION.fullmatch(server_version):
        remedy = f"bring the server to MLflow {ours}, or let its address's /version through to it"
        return finding("ledger", "warn", "the server's answer to /version is no version", remedy)
    same = server_version.split(".")[0] == ours.split(".")[0]
    remedy = f"pip install 'mlflow=={server_version}' here, or bring the server to {ours}"
    return finding("ledger", "ok" if same else "warn", f"server is MLflow {server_version}", remedy)


def _loopback(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)
    return False


def _file_system(path: Path) -> str:
    """The kind of file system of a path, as /proc/mounts names it, or "" if unknown."""
    best = ("", "")
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if path.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]
