"""A recorded study as the commands read it: which one is meant, its trials, its records, its verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from muxfer.analysis import transferability
from muxfer.analysis.cells import Best
from muxfer.config.parse import parse
from muxfer.config.study import Config, StudyKind
from muxfer.errors import BadInput
from muxfer.ledger.base import Ledger
from muxfer.study.match import the_study
from muxfer.study.resolve import Request
from muxfer.study.rounds import proposing
from muxfer.study.search import is_finalist, searched
from muxfer.study.trials import remaining
from muxfer.trial import Record, Study, Trial, Verdict, VerdictKind


@dataclass(frozen=True, kw_only=True)
class RecordedStudy:
    """A study of the ledger: the configuration that it was last driven with, its trials, and all its records."""

    study: Study
    config: Config
    trials: Sequence[Trial]
    all_records: Sequence[Record]

    @cached_property
    def records(self) -> list[Record]:
        """The settled records of the trials: what a verdict, a page and a transfer read."""
        keys = {trial.key for trial in self.trials}
        return [record for record in self.all_records if record.key in keys]

    @property
    def unfinished(self) -> int:
        return len(remaining(self.trials, self.records))

    @cached_property
    def verdict(self) -> Verdict:
        """A study with trials still to run is never said to transfer."""
        return judge(self.records, self.config, unfinished=self.unfinished)

    @cached_property
    def best(self) -> Best | None:
        """The best finalist where there are finalists, else the best trial. None: no trial has finished."""
        search = self.config.search
        finalists = [record for record in self.records if is_finalist(search, record)]
        return transferability.best_setting(finalists or self.records, axis=search.axis, hp=search.hp)

    @property
    def notes(self) -> list[str]:
        """A line for people where an earlier, wider grid left more settled proxies than these trials."""
        keys = {trial.key for trial in self.trials}
        outside = [record for record in self.all_records if record.kind == "proxy" and record.key not in keys]
        if not outside:
            return []
        return [
            f"{len(outside)} more settled trials of {self.study.label} lie outside the grid that it was last swept"
            " with: verdict, page and transfer leave them out; sweep a grid that holds them to have them back"
        ]


def read_study(request: Request, ledger: Ledger) -> RecordedStudy:
    """The recorded study that a request means. BadInput when none fits, two fit, or the data are others."""
    study = the_study(ledger.studies(request.name), request.study, request.overridden)
    if study.identity["data_fingerprint"] != request.fingerprint:
        label = study.label
        raise BadInput(
            f"the data are not those of study {label}: give the sweep's own overrides (data=..., data.path=...)"
        )
    config = parse(ledger.config(study))
    propose = proposing(config, fingerprint=request.fingerprint, numerics=study.identity["numerics"])
    records = ledger.records(study)
    return RecordedStudy(study=study, config=config, trials=propose(records), all_records=records)


def judge(records: Sequence[Record], config: Config, *, unfinished: int = 0) -> Verdict:
    """The verdict on these records. `unfinished` trials turn "transfers" into "abstains"."""
    if config.search.kind is StudyKind.ISOFLOP:
        why = "the best size for a budget is what `muxfer fit` says"
        return Verdict(verdict=VerdictKind.ABSTAINS, why=why, axis=config.search.axis, hp=config.search.hp)
    judged = transferability.judge(searched(config.search, records), axis=config.search.axis, hp=config.search.hp)
    if unfinished and judged.verdict is VerdictKind.TRANSFERS:
        so_far = f"{unfinished} trials are still to run; so far {judged.why}"
        return replace(judged, verdict=VerdictKind.ABSTAINS, why=so_far)
    return judged
