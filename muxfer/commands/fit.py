"""The fit command: the scaling laws of an isoFLOP study, or of anybody's table of trained models.

What is fitted and what is refused is `muxfer.analysis.scaling_law`; here it is read, put into words and drawn. Exit
code 6 where the optima are too few for a law: the budgets are shown all the same, with what each of them lacks.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.isoflop_points import Points
from muxfer.analysis.law_comparison import Comparison, Differ, compare
from muxfer.analysis.parametric_law import ParametricLaw, fit_parametric
from muxfer.analysis.power_law import Interval
from muxfer.analysis.scaling_law import MIN_BUDGETS, IsoflopFit, Prediction, fit_isoflop, predict
from muxfer.commands.csv_columns import read_columns
from muxfer.commands.result import CommandResult
from muxfer.config.study import StudyKind
from muxfer.errors import BadInput, NotConfirmed
from muxfer.files import user_path, validate_writable
from muxfer.report.figures.laws import laws_figure
from muxfer.report.format import TERMINAL
from muxfer.study.isoflop import points_of
from muxfer.study.match import proxy_task
from muxfer.study.recorded import read_study
from muxfer.study.resolve import resolve, words_of
from muxfer.study.session import open_ledger
from muxfer.trial import Study

NAMES = {"params": "parameters", "tokens": "tokens", "loss": "loss", "fid": "FID"}
CURVES = {2: "parabola", 3: "cubic", 4: "quartic"}


def fit(
    name: str | None,
    overrides: Sequence[str],
    *,
    table: str | None = None,
    predict_at: float | None = None,
    against: str | None = None,
    against_table: str | None = None,
    figure: str | None = None,
) -> CommandResult:
    """The laws of study `name` or of `table`, a prediction at `predict_at` FLOPs, and how they stand against another's.

    `against` is a sweep's name with its overrides, as one would type them. The figure goes beside the study's report;
    of a table, only where `figure` names its file.
    """
    stem = None if figure is None else _figure_stem(figure, table)
    study, unfinished = None, 0
    if table is not None:
        title, points = Path(table).name, table_points(table)
    else:
        assert name is not None
        title = name
        study, points, home, unfinished = _study_points(name, overrides)
        stem = stem or home / "isoflop"
    try:
        found = fit_isoflop(points)
    except BadInput as error:
        raise BadInput(f"{title}: {error}") from None
    if table is not None and len(found.budgets) < MIN_BUDGETS:
        raise BadInput(f"{title}: {found.why}")
    notes = [*found.notes, *([f"{unfinished} trials are still to run"] if unfinished else [])]
    parametric = fit_parametric(points)
    prediction = None if predict_at is None or found.why else predict(found, predict_at)
    comparison = None
    if against is not None or against_table is not None:
        comparison = _compared(found, study, title, against, against_table)
    paths = []
    if stem is not None:
        validate_writable(stem.parent)
        law = parametric if isinstance(parametric, ParametricLaw) else None
        paths = laws_figure(found, stem, title=title, parametric=law, prediction=prediction)
    data = {
        **fit_data(found, parametric, prediction),
        "notes": notes,
        "comparison": None if comparison is None else comparison.to_dict(),
        "figure": str(paths[0]) if paths else None,
    }
    lines = [*fit_lines(found, parametric, prediction, predict_at=predict_at)]
    if comparison is not None:
        lines += ["", f"{comparison.names[0]} against {comparison.names[1]}", *map(_indented, comparison.readings())]
    if notes:
        lines += ["", *(f"note: {note}" for note in notes)]
    if paths:
        lines += ["", f"figure: {paths[0]}"]
    return CommandResult(data=data, text="\n".join(lines), exit_code=NotConfirmed.exit_code if found.why else 0)


def _figure_stem(figure: str, table: str | None) -> Path:
    """Where the figure goes, as PNG, SVG and CSV: never over the table that it is drawn from."""
    path = user_path(figure, "--figure")
    stem = path.with_suffix("")
    if path.suffix not in (".png", ".svg"):
        raise BadInput(f"--figure {figure}: expected FILE.png or FILE.svg")
    if table is not None and stem.with_suffix(".csv").resolve() == Path(table).expanduser().resolve():
        raise BadInput(f"--figure {figure}: its numbers would be written over {table}; give it another name")
    return stem


def table_points(path: str) -> Points:
    """Columns flops, params and loss; tokens (else C / 6N) and fid where there are any."""
    columns = read_columns(path, ["flops", "params", "loss"], optional=["tokens", "fid"])
    tokens = columns["tokens"] if "tokens" in columns else columns["flops"] / (6 * columns["params"])
    return Points(
        flops=columns["flops"],
        params=columns["params"],
        tokens=tokens,
        loss=columns["loss"],
        fid=columns.get("fid"),
    )


def _study_points(name: str, overrides: Sequence[str]) -> tuple[Study, Points, Path, int]:
    """The recorded study that was meant, its points, its folder, and how many of its trials are still to run."""
    request = resolve(name, overrides, planned=True)
    if request.config.search.kind is not StudyKind.ISOFLOP:
        raise BadInput(
            f"sweep {name} is no isoFLOP study (search.sampler {request.config.search.sampler}): give one, as isoflop"
            " is, or a table of trained models, --table FILE.csv"
        )
    with open_ledger(request, existing=True) as ledger:
        recorded = read_study(request, ledger)
    study = recorded.study
    points = points_of(recorded.records, proxy_task(recorded.config, study))
    return study, points, request.files_of(study).path, recorded.unfinished


def _compared(
    found: IsoflopFit, study: Study | None, title: str, against: str | None, against_table: str | None
) -> Comparison:
    differ: Differ = "unknown"
    if against_table is not None:
        name, points = Path(against_table).name, table_points(against_table)
    else:
        name, *overrides = words_of(against or "", "--against")
        other, points, _, _ = _study_points(name, overrides)
        name = " ".join((name, *overrides))
        if study is not None:
            same_data = study.identity["data_fingerprint"] == other.identity["data_fingerprint"]
            same_model = study.identity["model"] == other.identity["model"]
            differ = "unknown" if same_data == same_model else "model" if same_data else "data"
    return compare(found, fit_isoflop(points), names=(title, name), differ=differ)


def fit_data(found: IsoflopFit, parametric: ParametricLaw | str, prediction: Prediction | None) -> dict[str, Any]:
    """The JSON of the command, as the command line's contract has it; laws are null where `why` says why."""
    told = {name: found.laws[name].to_dict() if name in found.laws else None for name in ("params", "tokens", "loss")}
    if "fid" in found.laws:
        told["fid"] = found.laws["fid"].to_dict()
    return {
        **told,
        "why": found.why,
        "optima": [
            {
                "flops": budget.flops,
                "params": budget.params.value,
                "params_low": budget.params.low,
                "params_high": budget.params.high,
                "tokens": budget.tokens,
                "loss": budget.loss,
                **({} if budget.fid is None else {"fid": budget.fid}),
            }
            for budget in found.kept
            if budget.params is not None
        ],
        "left_out": [{"flops": budget.flops, "why": budget.why} for budget in found.budgets if budget.why],
        "degree": found.degree,
        "noise": found.noise,
        "prediction": None if prediction is None else prediction.to_dict(),
        "parametric": parametric.to_dict() if isinstance(parametric, ParametricLaw) else None,
    }


def fit_lines(
    found: IsoflopFit,
    parametric: ParametricLaw | str,
    prediction: Prediction | None,
    *,
    predict_at: float | None = None,
) -> Iterator[str]:
    """Budgets with their optima, laws with intervals, the prediction, and the parametric law beside them.

    A prediction that was asked for, at `predict_at` FLOPs, is not passed over where no law gives it.
    """
    noise = "" if found.noise is None else f", noise {100 * found.noise:.2g} % of the loss"
    kind = "" if found.degree is None else f", a {CURVES[found.degree]} in log N each{noise}"
    yield f"{len(found.budgets)} budgets{kind}"
    yield ""
    yield f"{'FLOPs':>9}  {'sizes':>5}  {'optimal parameters [95 %]':<38}{'tokens':>10}{'loss':>10}"
    for budget in found.budgets:
        head = f"{budget.flops:>9.3g}  {len(set(budget.points.params)):>5}  "
        if budget.params is None:
            yield from textwrap.wrap(f"{head}left out: {budget.why}", TERMINAL, subsequent_indent=" " * 18)
        else:
            yield f"{head}{_shown(budget.params):<38}{budget.tokens:>10.4g}{budget.loss:>10.4g}"
    yield ""
    if found.why:
        yield from textwrap.wrap(f"no law: {found.why}", TERMINAL, subsequent_indent="  ")
        if predict_at is not None:
            yield f"no prediction: what {predict_at:.4g} FLOPs buy is read off the laws"
    else:
        yield f"{'law':<12}{'coefficient':>12}   exponent of C [95 %]"
        for name, law in found.laws.items():
            yield f"{NAMES[name]:<12}{law.coefficient.value:>12.5g}   {_shown(law.exponent)}"
    if prediction is not None:
        beyond = prediction.flops / max(budget.flops for budget in found.kept)
        far = f", {beyond:.3g} times the largest budget" if beyond > 1 else ""
        yield ""
        yield f"at {prediction.flops:.4g} FLOPs{far}"
        for name, label in NAMES.items():
            if (value := getattr(prediction, name)) is not None:
                yield f"  {label:<12}{_shown(value)}"
    yield ""
    if isinstance(parametric, str):
        yield from textwrap.wrap(f"no parametric law: {parametric}", TERMINAL, subsequent_indent="  ")
        return
    p = parametric
    yield f"parametric law  L = {p.E:.4g} + {p.A:.4g}/N^{p.a:.3f} + {p.B:.4g}/D^{p.b:.3f}"
    yield f"  exponent of C: {p.params_exponent:.4f} of the parameters, {p.tokens_exponent:.4f} of the tokens"
    yield f"  half of its misses are below {100 * p.residual:.2g} % of the loss"
    if prediction is not None:
        params, tokens, loss = p.optimum(prediction.flops)
        yield f"  at {prediction.flops:.4g} FLOPs: {params:.4g} parameters, {tokens:.4g} tokens, loss {loss:.4g}"


def _shown(interval: Interval) -> str:
    """With so many digits that the interval has two of its own."""
    half = (interval.high - interval.low) / 2
    digits = 4
    if half > 0:
        digits = min(max(4, math.floor(math.log10(abs(interval.value))) - math.floor(math.log10(half)) + 2), 9)
    value, low, high = (f"{x:.{digits}g}" for x in (interval.value, interval.low, interval.high))
    return value if low == high else f"{value} [{low}, {high}]"


def _indented(line: str) -> str:
    return "\n".join(textwrap.wrap(line, TERMINAL, initial_indent="  ", subsequent_indent="    "))
