"""`muxfer clean`: remove a study's files, never its records."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from muxfer.commands.result import CommandResult
from muxfer.errors import BadInput, StudyBusy
from muxfer.ledger.tracking_uri import redact_uri
from muxfer.study.match import studies_that_fit
from muxfer.study.resolve import resolve, tracking_uri
from muxfer.study.session import open_ledger


def clean(name: str | None, overrides: Sequence[str], *, confirmed: Callable[[str], bool]) -> CommandResult:
    """Remove the files of a study (of every study of that name without overrides, of all without a name), after asking.

    The ledger is kept. Refused where a driver is at work, or may be on another host, and where a spool holds what the
    ledger has not yet taken. A study that the ledger does not know is left: who drives it is known to another one.
    """
    request = resolve(name or "lr-width", overrides)
    label = re.compile(f"{re.escape(name) if name else '.+'}-[0-9a-f]{{8}}")
    found = sorted(home for home in request.folder.glob("*") if label.fullmatch(home.name) and home.is_dir())
    if not found:
        return CommandResult(data={"removed": [], "left": []}, text=f"nothing to remove in {request.folder}")
    with open_ledger(request) as ledger:
        studies = [study for study in ledger.studies(name) if request.folder / study.label in found]
        if request.overridden:
            fitting = studies_that_fit(studies, request.study, request.overridden)
            if not fitting:
                known = ", ".join(study.label for study in studies) or "none"
                given = " ".join(override for override in overrides if not override.lstrip("+").startswith("ledger"))
                raise BadInput(
                    f"no study {name} with {given} has files in {request.folder}: those there are"
                    f" {known}; leave the overrides out to clean them all"
                )
            studies, found = fitting, [request.folder / study.label for study in fitting]
        for study in studies:
            holder = ledger.driver(study)
            if holder is not None and holder.alive() is not False:
                raise StudyBusy(f"study {study.label} is being driven: {holder}; stop it first, nothing was removed")
    homes = sorted({request.folder / study.label for study in studies})
    left = [home for home in found if home not in homes]
    told_left = (
        f"left {', '.join(map(str, left))}: what is there is not in the ledger"
        f" {redact_uri(tracking_uri(request.config))}, and another's driver may be at work; clean it with its own,"
        " MLFLOW_TRACKING_URI=URI, or remove it by hand"
    )
    if not homes:
        raise BadInput(told_left)
    if linked := [home for home in homes if home.is_symlink()]:
        raise BadInput(
            f"{linked[0]} is a link to {os.path.realpath(linked[0])}: remove the link and what it leads to by hand;"
            " nothing was removed"
        )
    _expect_delivered(homes)
    megabytes = {home: sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) / 1e6 for home in homes}
    told = "\n".join(f"  {home} ({size:.1f} MB)" for home, size in megabytes.items())
    if not confirmed(f"checkpoints, samples and reports in\n{told}\nThe ledger is kept. Remove them?"):
        return CommandResult(data={"removed": [], "left": []}, text="nothing was removed")
    with contextlib.ExitStack() as held:
        ledger = held.enter_context(open_ledger(request))
        for study in studies:  # a person takes time to answer, and meanwhile one may have been started
            held.callback(ledger.acquire(study).release)
        _expect_delivered(homes)
        for home in homes:
            try:
                shutil.rmtree(home)
            except OSError as error:
                raise BadInput(
                    f"{home} can't be removed as a whole ({error.strerror or error}): mend that, then run the same"
                    " command again"
                ) from None
    data = {"removed": [str(home) for home in homes], "left": [str(home) for home in left]}
    text = f"removed {len(homes)} folders"
    return CommandResult(data=data, text=f"{text}\n{told_left}" if left else text)


def _expect_delivered(homes: Sequence[Path]) -> None:
    for home in homes:
        if spools := list(home.glob("spool-*.jsonl")):
            raise BadInput(
                f"{spools[0]} holds what the ledger has not taken yet: let muxfer sweep {home.name[:-9]} finish first"
                " with the ledger that it was written for, MLFLOW_TRACKING_URI=URI, or remove that file by hand"
            )
