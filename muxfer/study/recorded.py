"""What a recorded study is to the commands that read it: which one was meant, its trials, its records, its verdict."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from muxfer.config.parse import parse
from muxfer.config.study import Config
from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.ledger.base import Ledger
from muxfer.study.match import the_study
from muxfer.study.resolve import Request
from muxfer.study.rounds import proposing
from muxfer.study.search import is_finalist, searched
from muxfer.trial import Record, Study, Trial, Verdict

if TYPE_CHECKING:
    from muxfer.analysis.cells import Best


def recorded(request: Request, ledger: Ledger) -> tuple[Study, Config, list[Trial]]:
    """The recorded study that was meant, the configuration that it was last driven with, and its trials."""
    study = the_study(ledger.studies(request.name), request.study, request.overridden)
    if study.identity["data_fingerprint"] != request.fingerprint:
        raise BadInput(
            f"the data are not those of study {study.label}: give the sweep's own overrides (data=..., data.path=...)"
        )
    config = parse(ledger.config(study))
    propose = proposing(config, fingerprint=request.fingerprint, numerics=study.identity["numerics"])
    return study, config, propose(ledger.records(study))


def records_of(ledger: Ledger, study: Study, trials: Sequence[Trial]) -> list[Record]:
    """The settled records of these trials: what a verdict, a page and a transfer read."""
    wanted = {trial.key for trial in trials}
    return [record for record in ledger.records(study) if record.key in wanted]


def outside(ledger: Ledger, study: Study, trials: Sequence[Trial]) -> list[str]:
    """A line for people where the study has more settled proxies than these trials: an earlier, wider grid's."""
    wanted = {trial.key for trial in trials}
    others = [record for record in ledger.records(study) if record.kind == "proxy" and record.key not in wanted]
    if not others:
        return []
    return [
        f"{len(others)} more settled trials of {study.label} lie outside the grid that it was last swept with: verdict,"
        " page and transfer leave them out; sweep a grid that holds them to have them back"
    ]


def expect_taken(ledger: Ledger, study: Study, ran: Sequence[Record]) -> None:
    """What a command trained must stand in the ledger once that took everything; LedgerUnreachable else."""
    held = {(record.key, record.epoch) for record in ledger.records(study)}
    missing = [record.key for record in ran if (record.key, record.epoch) not in held]
    if missing:
        raise LedgerUnreachable(
            f"the ledger does not hold the records of {len(missing)} trials that ended (the first: {min(missing)}):"
            " their runs were deleted or changed meanwhile; run the same command again"
        )


def judge(records: Sequence[Record], config: Config, *, unfinished: int = 0) -> Verdict:
    """The verdict on these records; a study with trials still to run is never said to transfer."""
    from muxfer.analysis import transferability

    if config.search.sampler == "isoflop":
        why = "the best size for a budget is what `muxfer fit` says"
        return Verdict(verdict="abstains", why=why, axis=config.search.axis, hp=config.search.hp)
    judged = transferability.judge(searched(config.search, records), axis=config.search.axis, hp=config.search.hp)
    if unfinished and judged.verdict == "transfers":
        return replace(judged, verdict="abstains", why=f"{unfinished} trials are still to run; so far {judged.why}")
    return judged


def best_of(records: Sequence[Record], config: Config) -> "Best | None":
    """The best of the finalists, where there are any: what they were trained for."""
    from muxfer.analysis.transferability import best_setting

    last = [record for record in records if is_finalist(config.search, record)]
    return best_setting(last or records, axis=config.search.axis, hp=config.search.hp)
