"""The doctor command: will a sweep run here, safely? Each part is tried for real; what is wrong comes with its mend.

Ray is started (or the cluster at compute.address joined), the ledger is asked, the disks are measured. Nothing is
written but what Ray itself writes while it starts.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from muxfer.commands.result import CommandResult
from muxfer.config.study import Compute
from muxfer.errors import MuxferError, NotConfirmed
from muxfer.executors import ray_sessions
from muxfer.ledger.tracking_uri import redact_uri, sqlite_path
from muxfer.study.resolve import Request, resolve_without_data, tracking_uri
from muxfer.study.session import open_ledger

GB = 1e9
LITTLE_DISK_GB = 2.0
SLOT_MEMORY_GB = 1.0
"""What a trial's process should find: Python, torch and Ray, before its model. A rule of thumb, not measured."""
SHARED_MEMORY_GB = 0.12
"""Ray's object store as we start it, and a little more."""
FILES = 1024
NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs", "ceph", "fuse.sshfs", "9p"}
VERSION = re.compile(r"\d+(\.\w+)*(\+[\w.]+)?", re.ASCII)
UNANSWERED = (OSError, http.client.HTTPException)
"""What comes of asking a server that is away, or none."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was looked at, how it is, and, where it is not well, how to mend it."""

    part: str
    state: Literal["ok", "warn", "fail"]
    told: str
    mend: str = ""


def doctor(name: str, overrides: Sequence[str]) -> CommandResult:
    """Exit 6 where a part fails; a warning is none. `name` says which ledger, folder and cluster are meant."""
    request = resolve_without_data(name, overrides)
    examinations: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "machine": lambda: machine(request),
        "ray": lambda: cluster(request.config.compute),
        "ledger": lambda: ledger(request),
    }
    findings: list[Finding] = []
    for part, examine in examinations.items():
        try:
            findings += examine()
        except MuxferError as error:
            findings.append(Finding(part=part, state="fail", told=str(error)))
    lines = []
    for one in findings:
        lines.append(f"{one.state:<4}  {one.part:<9} {one.told}")
        if one.mend:
            lines.append(f"{'':15} {one.mend}")
    failed = sum(one.state == "fail" for one in findings)
    verdict = "fail" if failed else "pass"
    lines.append(f"{verdict}: {failed} of {len(findings)} failed" if failed else "pass: a sweep will run here")
    data = {"verdict": verdict, "findings": [asdict(one) for one in findings]}
    return CommandResult(data=data, text="\n".join(lines), exit_code=NotConfirmed.exit_code if failed else 0)


def versions() -> Iterator[Finding]:
    """Whether each package is there in a version that muxfer was made for."""
    from packaging.requirements import Requirement

    told, wrong = [], []
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
            told.append(f"{requirement.name} {installed}")
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, expected {requirement.specifier}")
    for what in wrong:
        yield Finding(part="versions", state="fail", told=what, mend="pip install -U muxfer")
    if not wrong:
        yield Finding(part="versions", state="ok", told=f"python {platform.python_version()}, {', '.join(told)}")


def machine(request: Request) -> Iterator[Finding]:
    """Memory for the slots, disks, shared memory, open files, devices."""
    import psutil

    slots = request.config.compute.slots or len(os.sched_getaffinity(0))
    available = psutil.virtual_memory().available / GB
    need = slots * SLOT_MEMORY_GB
    yield Finding(
        part="memory",
        state="ok" if available >= need else "warn",
        told=f"{available:.1f} GB available for {slots} slots",
        mend="" if available >= need else f"fewer slots, compute.slots={max(1, int(available / SLOT_MEMORY_GB))}",
    )
    for what, folder in (("output", request.folder), ("Ray's", ray_sessions.parent_folder())):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        free = shutil.disk_usage(existing).free / GB
        elsewhere = "output_dir=FOLDER" if what == "output" else "RAY_TMPDIR"
        if not os.access(existing, os.W_OK | os.X_OK):
            told = f"{existing} can't be written, and {what} files go there"
            yield Finding(part="disk", state="fail", told=told, mend=f"give another folder: {elsewhere}")
        mend = f"free some, or give another folder: {elsewhere}"
        state: Literal["ok", "warn"] = "ok" if free >= LITTLE_DISK_GB else "warn"
        yield Finding(
            part="disk", state=state, told=f"{free:.1f} GB free for {what} files", mend="" if state == "ok" else mend
        )
    if Path("/dev/shm").exists():
        shared = shutil.disk_usage("/dev/shm").free / GB
        mend = "in a container: docker run --shm-size=1g"
        yield Finding(
            part="memory",
            state="ok" if shared >= SHARED_MEMORY_GB else "warn",
            told=f"{shared:.1f} GB free in /dev/shm",
            mend="" if shared >= SHARED_MEMORY_GB else f"Ray will use the disk instead, slowly; {mend}",
        )
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= files < FILES
    yield Finding(
        part="files",
        state="warn" if few else "ok",
        told=f"{files} files may be open at once",
        mend=f"ulimit -n {most}" if few else "",
    )
    yield from _devices(request.config.compute)


def _devices(compute: Compute) -> Iterator[Finding]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    told = ", ".join(names) if names else f"no GPU; {len(os.sched_getaffinity(0))} cores"
    lacking = compute.device == "cuda" and not names
    mend = "use compute.device=auto, or a machine that has one (nvidia-smi shows what the driver sees)"
    yield Finding(part="devices", state="fail" if lacking else "ok", told=told, mend=mend if lacking else "")


def cluster(compute: Compute) -> Iterator[Finding]:
    """Whether Ray starts, or is joined, with the slots asked for, and who else could use it."""
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
    yield Finding(part="ray", state="ok", told=f"{how} in {seconds:.1f} s, {executor.slots} x {executor.device}")
    if compute.address is not None:
        told = "whether it asks everybody for a token, and where it listens, was decided where it was started"
        mend = "start its nodes with RAY_AUTH_MODE=token, in a private network"
        yield Finding(part="ray", state="warn", told=told, mend=mend)
        return
    with_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if with_token:
        yield Finding(part="ray", state="ok", told="asks for a token")
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if token.exists() and token.stat().st_mode & 0o077:
            mend = f"chmod 600 {token}"
            yield Finding(part="ray", state="warn", told="others on this host may read its token", mend=mend)
    elif listening:
        told = f"asks for no token and listens beyond this machine ({', '.join(listening[:3])}): others can run code"
        mend = "unset RAY_AUTH_MODE, or RAY_AUTH_MODE=token, on every node and for muxfer"
        yield Finding(part="ray", state="fail", told=told, mend=mend)
    else:
        yield Finding(part="ray", state="ok", told="asks for no token; nothing of it listens beyond this machine")


def ledger(request: Request) -> Iterator[Finding]:
    """Whether the ledger answers, how fast, and whether it asks who is there."""
    uri = tracking_uri(request.config)
    where = redact_uri(uri)
    database = sqlite_path(uri)
    if database is not None:
        if not database.exists():
            yield Finding(part="ledger", state="ok", told=f"{where} is not there yet: the first sweep makes it")
        if (kind := _file_system(database)) in NETWORK_DISKS:
            told = f"{where} lies on a network disk ({kind}), where SQLite's locks may not hold"
            yield Finding(
                part="ledger", state="fail", told=told, mend="an MLflow server, ledger.tracking_uri=http://..."
            )
        existing = next(place for place in (database, *database.parents) if place.exists())
        if not os.access(existing, os.W_OK):
            mend = "give another, ledger.tracking_uri=sqlite:///FILE.db"
            yield Finding(part="ledger", state="fail", told=f"{existing} can't be written", mend=mend)
        if not database.exists():
            return
    began = time.monotonic()
    with open_ledger(request) as opened:
        studies = opened.studies()
    seconds = time.monotonic() - began
    told = f"{where} answers: {len(studies)} studies, read in {seconds:.1f} s (a first connection counts in)"
    yield Finding(part="ledger", state="ok", told=told)
    if uri.startswith("http"):
        yield from _server(uri, where)


def _server(uri: str, where: str) -> Iterator[Finding]:
    parts = urlsplit(uri)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    with contextlib.suppress(*UNANSWERED), urllib.request.urlopen(f"{bare}/version", timeout=5) as answer:
        yield _server_version(answer.read(100).decode(errors="replace").strip())
    if _loopback(parts.hostname or ""):
        return
    try:
        urllib.request.urlopen(f"{bare}/api/2.0/mlflow/experiments/search?max_results=1", timeout=5).close()
    except urllib.error.HTTPError as error:
        known = error.code in (401, 403)
        yield Finding(part="ledger", state="ok" if known else "warn", told=f"answers {error.code} to a stranger")
    except UNANSWERED as error:
        yield Finding(part="ledger", state="warn", told=f"could not be asked without credentials ({error})")
    else:
        mend = "mlflow server --app-name basic-auth, or a proxy that asks, or a private network"
        yield Finding(part="ledger", state="fail", told="anyone who reaches it may read and write", mend=mend)
    if parts.scheme == "http" and ("@" in parts.netloc or os.environ.get("MLFLOW_TRACKING_PASSWORD")):
        told = f"{where} takes the password unencrypted"
        yield Finding(part="ledger", state="warn", told=told, mend="serve it over https")


def _server_version(theirs: str) -> Finding:
    """What a server says of itself goes into a line that people paste into a shell: a version, or nothing of it."""
    ours = importlib.metadata.version("mlflow")
    if not VERSION.fullmatch(theirs):
        mend = f"bring the server to MLflow {ours}, or let its address's /version through to it"
        return Finding(part="ledger", state="warn", told="the server's answer to /version is no version", mend=mend)
    same = theirs.split(".")[0] == ours.split(".")[0]
    mend = "" if same else f"pip install 'mlflow=={theirs}' here, or bring the server to {ours}"
    return Finding(part="ledger", state="ok" if same else "warn", told=f"server is MLflow {theirs}", mend=mend)


def _loopback(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)
    return False


def _file_system(path: Path) -> str:
    """The kind of the file system that a path lies on, as /proc/mounts names it; "" where that is not known."""
    best = ("", "")
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if path.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]
