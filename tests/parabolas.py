"""Records of studies whose truth is known: parabolas in log2 of the rate, shifted, cut or with divergences."""

import dataclasses
import itertools

from muxfer.analysis.transferability import judge
from muxfer.trial import Outcome, Record

_keys = itertools.count()


def record(width, lr, metric, *, replicate=0, step=200, kind="proxy", outcome=None, **others):
    outcome = outcome or (Outcome.DIVERGED if metric is None else Outcome.FINISHED)
    setting = {"width": width, "base_lr": lr, **others}
    key = f"k{next(_keys)}"
    return Record(key=key, setting=setting, replicate=replicate, outcome=outcome, metric=metric, step=step, kind=kind)


def replaced(record, **changes):
    return dataclasses.replace(record, **changes)


def curve(width, exponents, *, vertex, floor=0.3, curvature=0.02, diverged=(), replicate=0):
    """A parabola of `curvature` per squared doubling around 2^vertex."""
    return [
        record(
            width, 2.0**e, None if e in diverged else floor * (1 + curvature * (e - vertex) ** 2), replicate=replicate
        )
        for e in exponents
    ]


def study(drift=0.0, exponents=range(-10, -3), **options):
    """Widths 32, 64, 128 whose optimum moves by `drift` grid steps a doubling, from 2^-7 at width 32."""
    return [
        one
        for doubling, width in enumerate((32, 64, 128))
        for one in curve(width, exponents, vertex=-7 + drift * doubling, **options)
    ]


def verdict_of(records, **options):
    return judge(records, axis="width", hp="base_lr", **options)
