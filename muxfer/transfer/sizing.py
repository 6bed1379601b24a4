"""Size the target at a budget by the fit of a recorded isoFLOP study. Refused: a target that has a size already, a
study of another kind, and a fit without enough optima for a law.
"""

from dataclasses import replace

from muxfer.analysis.laws.scaling_law import fit_isoflop
from muxfer.config.study import StudyKind, Target
from muxfer.config.task import Task
from muxfer.errors import BadInput
from muxfer.models.count import measure
from muxfer.study.isoflop import points_of, target_size
from muxfer.study.match import proxy_task
from muxfer.study.recorded import read_study
from muxfer.study.resolve import Request, resolve, words_of
from muxfer.study.session import open_ledger

SIZES = ("width", "depth", "steps")


def sized_target(request: Request, base: Task, flops: float, law: str | None) -> tuple[Target, str]:
    """The target at these FLOPs, and a line on its size. `law` is the isoFLOP study as typed; None: the request's."""
    target = request.config.target
    given = [name for name in SIZES if f"target.{name}" in request.overridden and getattr(target, name) is not None]
    if given:
        raise BadInput(f"target.{given[0]} and --flops both say how large the target is: give one")
    name, *overrides = [request.name, *request.overrides] if law is None else words_of(law, "--law")
    source = resolve(name, overrides, planned=True)
    if source.config.search.kind is not StudyKind.ISOFLOP:
        remedy = "name one that is, --law isoflop"
        raise BadInput(f"sweep {name} is no isoFLOP study, and its fit can't size a target: {remedy}")
    with open_ledger(source, existing=True) as ledger:
        study = read_study(source, ledger)
    config = study.config
    fit = fit_isoflop(points_of(study.records, proxy_task(config, study.study)))
    if fit.why:
        raise BadInput(f"the fit of {name} gives no law ({fit.why}): it can't size a target; see muxfer fit {name}")
    batch_size = target.batch_size or base.training.batch_size
    task = replace(base, training=replace(base.training, batch_size=batch_size))
    size = target_size(
        fit, flops, task, measure, width_per_depth=config.search.width_per_depth, flops_by=config.search.flops_by
    )
    line = (
        f"sized by the fit of {study.study.label} at {flops:.3g} FLOPs: width {size.width}, depth {size.depth},"
        f" {size.params:,} parameters, {size.steps} steps; it predicts a loss of {size.loss:.4g}"
    )
    return replace(target, width=size.width, depth=size.depth, steps=size.steps), line
