"""How fast models trained in earlier trials, and the hours that a plan takes at that speed."""

import math
from collections import defaultdict
from collections.abc import Mapping

from muxfer.config.settings import with_setting
from muxfer.errors import BadInput, LedgerUnreachable
from muxfer.models.count import Measure
from muxfer.study.cost import training_flops
from muxfer.study.match import proxy_task
from muxfer.study.resolve import Request
from muxfer.study.session import open_ledger
from muxfer.trial import Outcome

SIMILAR = 4.0  # a measured speed holds for models with up to this many times more or fewer multiply-accumulates


def speeds_of(request: Request, count: Measure) -> tuple[dict[int, float], str]:
    """Measured seconds a FLOP, by the multiply-accumulates of the model; or why nothing is known."""
    seconds: defaultdict[int, float] = defaultdict(float)
    flops: defaultdict[int, float] = defaultdict(float)
    family, source = request.config.model.family, request.config.data.name
    try:
        with open_ledger(request, existing=True) as ledger:
            for study in ledger.studies():
                if study.identity["model"]["family"] != family or study.identity["data"]["name"] != source:
                    continue
                base = proxy_task(request.config, study)
                for record in ledger.records(study):
                    if record.kind != "proxy" or record.outcome is Outcome.FAILED or not record.train_seconds:
                        continue
                    task = with_setting(base, record.setting)
                    macs = count(task.model).macs
                    seconds[macs] += record.train_seconds
                    flops[macs] += training_flops(macs, samples=record.step * task.training.batch_size)
    except (BadInput, LedgerUnreachable) as error:
        return {}, str(error)
    why = "" if seconds else f"no trial of model {family} on data {source} is recorded"
    return {macs: spent / flops[macs] for macs, spent in seconds.items() if flops[macs]}, why


def hours_at(flops: float, macs: int, speeds: Mapping[int, float]) -> float | None:
    """Hours at the speed of the model nearest in size; None where none is similar."""
    nearest = min(speeds, key=lambda known: abs(math.log(known / macs)), default=None)
    if nearest is None or abs(math.log(nearest / macs)) > math.log(SIMILAR) + 1e-9:
        return None
    return flops * speeds[nearest] / 3600
