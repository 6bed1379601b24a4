"""`muxfer clean`: remove a study's files, never its records."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Sequence

from muxfer.commands.result import CommandResult
from muxfer.errors import BadInput, StudyBusy
from muxfer.files import StudyFolder
from muxfer.ledger.base import Ledger
from muxfer.ledger.tracking_uri import redact_uri
from muxfer.study.match import studies_that_fit
from muxfer.study.resolve import Request, resolve, tracking_uri
from muxfer.study.session import open_ledger
from muxfer.trial import Study


def clean(name: str | None, overrides: Sequence[str], *, confirmed: Callable[[str], bool]) -> CommandResult:
    """Remove the files of a study after a question: with overrides the one that they mean, else all of that name.

    Without a name the files of all studies go. The ledger is kept. StudyBusy where a driver is at work, or may be on
    another host. BadInput where a spool holds records that the ledger has not taken. A folder whose study is not in
    this ledger is kept: only its own ledger knows whether a driver is at work.
    """
    request = resolve(name or "lr-width", overrides)
    label = re.compile(f"{re.escape(name) if name else '.+'}-[0-9a-f]{{8}}")
    folders = sorted(path for path in request.folder.glob("*") if label.fullmatch(path.name) and path.is_dir())
    if not folders:
        return CommandResult(data={"removed": [], "left": []}, text=f"nothing to remove in {request.folder}")
    with open_ledger(request) as ledger:
        studies = [study for study in ledger.studies(name) if request.files_of(study).path in folders]
        if request.overridden:
            studies = _matching(studies, request)
            folders = [request.files_of(study).path for study in studies]
        _refuse_driven(studies, ledger)
    homes = sorted({request.files_of(study).path for study in studies})
    kept = [path for path in folders if path not in homes]
    why_kept = (
        f"left {', '.join(map(str, kept))}: what is there is not in the ledger"
        f" {redact_uri(tracking_uri(request.config))}, and another's driver may be at work; clean it with its own,"
        " MLFLOW_TRACKING_URI=URI, or remove it by hand"
    )
    if not homes:
        raise BadInput(why_kept)
    files = [StudyFolder(home) for home in homes]
    for link in (home for home in homes if home.is_symlink()):
        leads = f"{link} is a link to {os.path.realpath(link)}"
        raise BadInput(f"{leads}: remove the link and what it leads to by hand; nothing was removed")
    _refuse_undelivered(files)
    if not confirmed(f"checkpoints, samples and reports in\n{_sizes(files)}\nThe ledger is kept. Remove them?"):
        return CommandResult(data={"removed": [], "left": []}, text="nothing was removed")
    _remove(files, studies, request)
    data = {"removed": [str(home) for home in homes], "left": [str(path) for path in kept]}
    return CommandResult(data=data, text=f"removed {len(homes)} folders" + (f"\n{why_kept}" if kept else ""))


def _matching(studies: Sequence[Study], request: Request) -> list[Study]:
    matches = studies_that_fit(studies, request.study, request.overridden)
    if not matches:
        known = ", ".join(study.label for study in studies) or "none"
        given = " ".join(override for override in request.overrides if not override.lstrip("+").startswith("ledger"))
        missing = f"no study {request.name} with {given} has files in {request.folder}"
        raise BadInput(f"{missing}: those there are {known}; leave the overrides out to clean them all")
    return matches


def _refuse_driven(studies: Sequence[Study], ledger: Ledger) -> None:
    for study in studies:
        holder = ledger.driver(study)
        if holder is not None and holder.alive() is not False:
            raise StudyBusy(f"study {study.label} is being driven: {holder}; stop it first, nothing was removed")


def _refuse_undelivered(folders: Sequence[StudyFolder]) -> None:
    for files in folders:
        if spools := files.spools:
            finish = f"let muxfer sweep {files.path.name[:-9]} finish first with the ledger that it was written for"
            why = f"{spools[0]} holds what the ledger has not taken yet: {finish}"
            raise BadInput(f"{why}, MLFLOW_TRACKING_URI=URI, or remove that file by hand")


def _sizes(folders: Sequence[StudyFolder]) -> str:
    paths = [files.path for files in folders]
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in paths]
    return "\n".join(f"  {path} ({size / 1e6:.1f} MB)" for path, size in zip(paths, sizes, strict=True))


def _remove(folders: Sequence[StudyFolder], studies: Sequence[Study], request: Request) -> None:
    """Remove the folders while every study's lease is held: a driver may have started while the person decided."""
    with open_ledger(request) as ledger, contextlib.ExitStack() as leases:
        for study in studies:
            leases.callback(ledger.acquire(study).release)
        _refuse_undelivered(folders)
        for files in folders:
            try:
                shutil.rmtree(files.path)
            except OSError as error:
                why = f"{files.path} can't be removed as a whole ({error.strerror or error})"
                raise BadInput(f"{why}: mend that, then run the same command again") from None
