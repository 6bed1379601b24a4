"""`muxfer fit`: the scaling laws of an isoFLOP study, or of a user's table of trained models.

`muxfer.analysis.laws.scaling_law` fits and refuses. This module reads the points, prints the laws and draws them. Exit
code 6 if too few budgets have an optimum for a law. The budgets are then shown with the reason for each that has none.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muxfer.analysis.laws.isoflop_points import Budget, Points
from muxfer.analysis.laws.law_comparison import Comparison, Differ, compare
from muxfer.analysis.laws.parametric_law import ParametricLaw, fit_parametric
from muxfer.analysis.laws.power_law import Interval
from muxfer.analysis.laws.scaling_law import MIN_BUDGETS, IsoflopFit, Prediction, fit_isoflop, predict
from muxfer.commands.csv_columns import read_columns
from muxfer.commands.result import CommandResult
from muxfer.config.study import StudyKind
from muxfer.errors import BadInput, NotConfirmed
from muxfer.files import user_path, validate_writable
from muxfer.report.figures.laws import laws_figure
from muxfer.report.format import TERMINAL
from muxfer.report.terminal import table_lines
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
    """The laws of study `name` or of `table`, a prediction at `predict_at` FLOPs, and a comparison with other laws.
    `against` is a sweep's name with its overrides, as typed on a command line. The figure of a study goes beside its
    report. The figure of a table is drawn only if `figure` names its file.
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
        laws = fit_isoflop(points)
    except BadInput as error:
        raise BadInput(f"{title}: {error}") from None
    if table is not None and len(laws.budgets) < MIN_BUDGETS:
        raise BadInput(f"{title}: {laws.why}")
    notes = [*laws.notes, *([f"{unfinished} trials are still to run"] if unfinished else [])]
    parametric = fit_parametric(points)
    prediction = None if predict_at is None or laws.why else predict(laws, predict_at)
    comparison = None
    if against is not None or against_table is not None:
        comparison = _comparison(laws, study, title, against, against_table)
    paths = []
    if stem is not None:
        validate_writable(stem.parent)
        drawn = parametric if isinstance(parametric, ParametricLaw) else None
        paths = laws_figure(laws, stem, title=title, parametric=drawn, prediction=prediction)
    data = {
        **fit_data(laws, parametric, prediction),
        "notes": notes,
        "comparison": None if comparison is None else comparison.to_dict(),
        "figure": str(paths[0]) if paths else None,
    }
    lines = [*fit_lines(laws, parametric, prediction, predict_at=predict_at)]
    if comparison is not None:
        lines += ["", f"{comparison.names[0]} against {comparison.names[1]}"]
        for reading in comparison.readings():
            lines += textwrap.wrap(reading, TERMINAL, initial_indent="  ", subsequent_indent="    ")
    if notes:
        lines += ["", *(f"note: {note}" for note in notes)]
    if paths:
        lines += ["", f"figure: {paths[0]}"]
    return CommandResult(data=data, text="\n".join(lines), exit_code=NotConfirmed.exit_code if laws.why else 0)


def _figure_stem(figure: str, table: str | None) -> Path:
    """The path of the figure without a suffix. It is written as PNG, SVG and CSV, but never over the table itself."""
    path = user_path(figure, "--figure")
    stem = path.with_suffix("")
    if path.suffix not in (".png", ".svg"):
        raise BadInput(f"--figure {figure}: expected FILE.png or FILE.svg")
    if table is not None and stem.with_suffix(".csv").resolve() == Path(table).expanduser().resolve():
        raise BadInput(f"--figure {figure}: its CSV would replace {table}; give it another name")
    return stem


def table_points(path: str) -> Points:
    """The columns flops, params and loss. Without a column tokens they are C / 6N. A column fid is optional."""
    columns = read_columns(path, ["flops", "params", "loss"], optional=["tokens", "fid"])
    tokens = columns["tokens"] if "tokens" in columns else columns["flops"] / (6 * columns["params"])
    return Points(
        flops=columns["flops"], params=columns["params"], tokens=tokens, loss=columns["loss"], fid=columns.get("fid")
    )


def _study_points(name: str, overrides: Sequence[str]) -> tuple[Study, Points, Path, int]:
    """The recorded study of that name, its points, its folder, and how many of its trials are still to run."""
    request = resolve(name, overrides, planned=True)
    if request.config.search.kind is not StudyKind.ISOFLOP:
        raise BadInput(
            f"sweep {name} is no isoFLOP study (search.sampler {request.config.search.sampler}): give one, such as"
            " isoflop, or a table of trained models, --table FILE.csv"
        )
    with open_ledger(request, existing=True) as ledger:
        recorded = read_study(request, ledger)
    study = recorded.study
    points = points_of(recorded.records, proxy_task(recorded.config, study))
    return study, points, request.files_of(study).path, recorded.unfinished


def _comparison(
    laws: IsoflopFit, study: Study | None, title: str, against: str | None, against_table: str | None
) -> Comparison:
    """The laws against those of another study or table, and whether the two differ in model or data alone."""
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
    return compare(laws, fit_isoflop(points), names=(title, name), differ=differ)


def fit_data(laws: IsoflopFit, parametric: ParametricLaw | str, prediction: Prediction | None) -> dict[str, Any]:
    """The JSON of the command. Laws are null if there are too few optima, and `why` gives the reason."""
    names = ("params", "tokens", "loss", *(["fid"] if "fid" in laws.laws else []))
    return {
        **{name: laws.laws[name].to_dict() if name in laws.laws else None for name in names},
        "why": laws.why,
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
            for budget in laws.kept
            if budget.params is not None
        ],
        "left_out": [{"flops": budget.flops, "why": budget.why} for budget in laws.budgets if budget.why],
        "degree": laws.degree,
        "noise": laws.noise,
        "prediction": None if prediction is None else prediction.to_dict(),
        "parametric": parametric.to_dict() if isinstance(parametric, ParametricLaw) else None,
    }


def fit_lines(
    laws: IsoflopFit, parametric: ParametricLaw | str, prediction: Prediction | None, *, predict_at: float | None = None
) -> Iterator[str]:
    """Budgets with their optima, laws with intervals, the prediction or why there is none, the parametric law."""
    noise = "" if laws.noise is None else f", noise {100 * laws.noise:.2g} % of the loss"
    kind = "" if laws.degree is None else f", a {CURVES[laws.degree]} in log N each{noise}"
    yield from (f"{len(laws.budgets)} budgets{kind}", "", *_budget_lines(laws.budgets), "")
    if laws.why:
        yield from textwrap.wrap(f"no law: {laws.why}", TERMINAL, subsequent_indent="  ")
        if predict_at is not None:
            yield f"no prediction: the size for {predict_at:.4g} FLOPs needs a law"
    else:
        rows = [["law", "coefficient", "exponent of C [95 %]"]]
        for name, law in laws.laws.items():
            rows.append([NAMES[name], f"{law.coefficient.value:.5g}", _with_interval(law.exponent)])
        yield from table_lines(rows, align="lrl")
    if prediction is not None:
        beyond = prediction.flops / max(budget.flops for budget in laws.kept)
        far = f", {beyond:.3g} times the largest budget" if beyond > 1 else ""
        values = [(label, getattr(prediction, name)) for name, label in NAMES.items()]
        rows = [[label, _with_interval(value)] for label, value in values if value is not None]
        yield from ("", f"at {prediction.flops:.4g} FLOPs{far}", *table_lines(rows, align="ll", indent=2))
    yield ""
    if isinstance(parametric, str):
        yield from textwrap.wrap(f"no parametric law: {parametric}", TERMINAL, subsequent_indent="  ")
    else:
        yield from _parametric_lines(parametric, prediction)


def _budget_lines(budgets: Sequence[Budget]) -> Iterator[str]:
    """A row for each budget: its optimum, or the reason why it has none."""
    rows = [["FLOPs", "sizes", "optimal parameters [95 %]", "tokens", "loss"]]
    for budget in budgets:
        row = [f"{budget.flops:.3g}", str(len(set(budget.points.params)))]
        if budget.params is None:
            row += ["", "", ""]
        else:
            row += [_with_interval(budget.params), f"{budget.tokens:.4g}", f"{budget.loss:.4g}"]
        rows.append(row)
    header, *lines = table_lines(rows, align="rrlrr", indent=2)
    yield header
    for line, budget in zip(lines, budgets, strict=True):
        if budget.params is None:
            indent = " " * (len(line) + 2)
            yield from textwrap.wrap(f"{line}  left out: {budget.why}", TERMINAL, subsequent_indent=indent)
        else:
            yield line


def _parametric_lines(law: ParametricLaw, prediction: Prediction | None) -> Iterator[str]:
    yield f"parametric law  L = {law.E:.4g} + {law.A:.4g}/N^{law.a:.3f} + {law.B:.4g}/D^{law.b:.3f}"
    yield f"  exponent of C: {law.params_exponent:.4f} of the parameters, {law.tokens_exponent:.4f} of the tokens"
    yield f"  half of its misses are below {100 * law.residual:.2g} % of the loss"
    if prediction is not None:
        params, tokens, loss = law.optimum(prediction.flops)
        yield f"  at {prediction.flops:.4g} FLOPs: {params:.4g} parameters, {tokens:.4g} tokens, loss {loss:.4g}"


def _with_interval(interval: Interval) -> str:
    """A value with its interval, with so many digits that two of them show the width of the interval."""
    half = (interval.high - interval.low) / 2
    digits = 4
    if half > 0:
        digits = min(max(4, math.floor(math.log10(abs(interval.value))) - math.floor(math.log10(half)) + 2), 9)
    value, low, high = (f"{x:.{digits}g}" for x in (interval.value, interval.low, interval.high))
    return value if low == high else f"{value} [{low}, {high}]"
