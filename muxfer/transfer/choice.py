"""Read a recorded study and choose: the winning setting, the target's scales, and the band of its loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from muxfer.analysis.loss_band import LossBand
from muxfer.analysis.transferability import inside_grid
from muxfer.config.settings import with_setting
from muxfer.config.task import Task
from muxfer.data.source import load_dataset
from muxfer.ledger.base import Ledger
from muxfer.models.build import scale_plan
from muxfer.models.count import measure
from muxfer.mup import ScalePlan, validate_same_base
from muxfer.study.cost import samples_seen, tuning_ratio
from muxfer.study.match import proxy_task
from muxfer.study.recorded import RecordedStudy, judge, read_study
from muxfer.study.resolve import Request
from muxfer.study.search import searched
from muxfer.transfer.guard import target_band
from muxfer.transfer.sizing import sized_target
from muxfer.transfer.target import TargetRun, target_run
from muxfer.trial import Record, Trial, Verdict


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The target of a recorded study, and what it was chosen from.

    `verdict` judges the settled trials alone; trials that are still to run stand in `target.forced`. `band` is a text
    where the target can't be watched. `sizing` says how a scaling law sized the target. `tuning_ratio` is the cost of
    the proxies over that of the target (equation 1 of the paper).
    """

    study: RecordedStudy
    verdict: Verdict
    target: TargetRun
    scales: ScalePlan
    band: LossBand | str
    guarded: bool
    sizing: str | None
    tuning_ratio: float

    @property
    def trial(self) -> Trial:
        """The target's trial, with its lineage."""
        return replace(self.target.trial, lineage={**self.target.lineage, "plan_hash": self.scales.hash})

    @property
    def watched_band(self) -> LossBand | None:
        """The band that halts the target, None where it is not watched."""
        return self.band if isinstance(self.band, LossBand) and self.guarded else None


def choose_target(request: Request, ledger: Ledger, *, flops: float | None, law: str | None, force: bool) -> Choice:
    """Choose the best setting of the study that a request means, and plan the target with it. `flops` sizes the target
    by the fit of the isoFLOP study `law`; law None: by the study's own. BadInput where the study can't be transferred,
    unless `force` overrules it.
    """
    study = read_study(request, ledger)
    config, sizing = request.config, None
    base = proxy_task(study.config, study.study)
    verdict = judge(study.records, study.config)
    if flops is not None and study.best is not None:
        sized, sizing = sized_target(request, with_setting(base, study.best.setting), flops, law)
        config = replace(config, target=sized)
    search = study.config.search
    target = target_run(
        config,
        study.study,
        verdict=verdict,
        best=study.best,
        inside=inside_grid(searched(search, study.records), axis=search.axis, hp=search.hp),
        unfinished=study.unfinished,
        fingerprint=request.fingerprint,
        num_pictures=len(load_dataset(config.data).train),
        force=force,
    )
    scales = scale_plan(target.task)
    validate_same_base(scale_plan(target.proxy), scales)
    curves = ledger.curves(study.study, "train_loss")
    return Choice(
        study=study,
        verdict=verdict,
        target=target,
        scales=scales,
        band=target_band(target, base, study.records, curves, axis=search.axis),
        guarded=config.target.guarded,
        sizing=sizing,
        tuning_ratio=_tuning_ratio(study.records, base, target.task),
    )


def _tuning_ratio(proxies: Sequence[Record], base: Task, target: Task) -> float:
    batch_sizes = [with_setting(base, record.setting).training.batch_size for record in proxies]
    trained = [(proxy.num_parameters, proxy.step * size) for proxy, size in zip(proxies, batch_sizes, strict=True)]
    return tuning_ratio(trained, (measure(target.model).parameters, samples_seen(target)))
