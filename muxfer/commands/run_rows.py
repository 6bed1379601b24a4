"""Which rows of a user's table are finished runs of one grid.

A column of states (W&B's `State`, Optuna's `state`, MLflow's `status`) says which runs finished. `--where` chooses
rows. Rows that repeat whole are exported twice. A third column that varies between the runs of one cell is refused: the
mean of the cell would mix its values.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muxfer.commands.csv_columns import column_names, hashes_of, read_texts
from muxfer.errors import BadInput, nearest

STATE_COLUMNS = ("state", "status")
FINISHED = frozenset(("finished", "complete", "completed", "success", "succeeded", "terminated", "done", "diverged"))
UNFINISHED = frozenset(
    (
        *("running", "crashed", "failed", "fail", "killed", "pruned", "waiting", "pending", "scheduled", "queued"),
        *("stopped", "preempted", "preempting", "error", "errored", "canceled", "cancelled", "timeout", "paused"),
    )
)
REPLICATE = re.compile(r"(^|[^a-z])(seed|replicate|repeat|rep|trial|run|fold)(s|_?id|_?number)?$")
LABEL = re.compile(
    r"(^|[^a-z])(name|id|user|host|hostname|node|device|gpu|rank|notes?|tags?|group|job|created|updated|date|time|"
    r"timestamp|runtime|duration|seconds|path|dir|folder|url|uri|commit|git|pid)$"
)
STEP = re.compile(r"(^|[^a-z])(step|epoch|iteration|iter)$")
SETTING = re.compile(r"^(params?[._/]|config[._/])")
"""How MLflow, Optuna and Ray begin the names of what a run was given."""
MANY_VALUES = 5
"""A setting has the same few values in every cell. A result has new ones: this many times as many as one cell."""
MAX_COMPARED = 1_000_000  # Rows whose other columns are compared
FEW_DIGITS = "{:.5g}"
"""Two runs may have the same rounded metric. The same metric with more digits is the same run."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that count, ascending, numbered from 0 as in the file, and what is said about the others."""

    numbers: np.ndarray
    num_left_out: int
    notes: tuple[str, ...]


def choose_rows(path: str, settings: Sequence[np.ndarray], used: Sequence[str], where: Sequence[str]) -> Rows:
    """The rows of finished runs for which every `where` (COL=VALUE) holds; values of one column are alternatives.

    `settings` are the columns that say which run a row is: where all are empty, it is a parent run or one that waits.
    `used` are the columns that the verdict reads. BadInput for a condition that nothing meets.
    """
    header = column_names(path)
    wanted = _conditions(where)
    is_kept = np.ones(len(settings[0]), dtype=bool)
    for name, texts in read_texts(path, list(wanted)).items():
        is_wanted = np.array([any(_equal(text, value) for value in wanted[name]) for text in texts.distinct])
        if not (is_kept & is_wanted[texts.codes]).any():
            known = nearest(wanted[name][0], texts.distinct[:30])
            raise BadInput(f"{path} has no row where {name} is {' or '.join(wanted[name])}: {known}")
        is_kept &= is_wanted[texts.codes]
    states: Counter[str] = Counter()
    column = next((name for name in header if name.lower() in STATE_COLUMNS and name not in (*used, *wanted)), None)
    if column is not None and (texts := read_texts(path, [column])[column]).is_any(FINISHED | UNFINISHED):
        is_finished = np.array([text.lower() in FINISHED for text in texts.distinct])[texts.codes]
        states.update(texts.distinct[code] or "empty" for code in texts.codes[is_kept & ~is_finished].tolist())
        is_kept &= is_finished
    is_parent = np.all([np.isnan(column) for column in settings], axis=0) & is_kept
    is_kept &= ~is_parent
    if not is_kept.any():
        raise BadInput(f"{path} has no row of a finished run: {_counts(states) or 'every setting is empty'}")
    return Rows(
        numbers=np.flatnonzero(is_kept),
        num_left_out=sum(states.values()) + int(is_parent.sum()),
        notes=tuple(_left_out(states, column, int(is_parent.sum()))),
    )


def copies(path: str, rows: np.ndarray, metrics: np.ndarray, used: Sequence[str]) -> np.ndarray:
    """Which of these rows, which ascend, repeat an earlier one whole: bool [N].

    A file with no further column does not tell two runs apart that have one rounded metric. There, only a metric of
    more than five digits counts as the same run.
    """
    if not len(rows):
        return np.zeros(0, dtype=bool)
    is_copy = np.ones(len(rows), dtype=bool)
    is_copy[np.unique(hashes_of(path, rows), return_index=True)[1]] = False
    if set(column_names(path)) <= set(used):
        exact = [math.isfinite(value) and float(FEW_DIGITS.format(value)) != value for value in metrics.tolist()]
        is_copy &= np.array(exact, dtype=bool)
    return is_copy


def refuse_mixed(path: str, rows: np.ndarray, cells: np.ndarray, used: Sequence[str], cell: str) -> None:
    """BadInput where a further setting varies between the runs of one cell. `cell` names what a cell is."""
    names = [name for name in column_names(path) if name and name not in used and not _is_label(name)]
    rows, cells = rows[rows < MAX_COMPARED], cells[: int((rows < MAX_COMPARED).sum())]
    if not names or not len(cells) or np.bincount(cells).max() < 2:
        return
    order = np.argsort(cells, kind="stable")
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(order)))
    mixed = {}
    for name, texts in read_texts(path, names, most=MAX_COMPARED).items():
        codes = texts.codes[rows][order]
        if (codes != np.repeat(codes[starts], sizes)).any() and _is_setting(name, codes, starts, sizes):
            mixed[name] = texts.distinct[Counter(codes.tolist()).most_common(1)[0][0]]
    if step := next((name for name in mixed if STEP.search(name.lower())), None):
        raise BadInput(f"{path} has several rows a run, one a {step}: expected one row a run; keep each run's last row")
    if mixed:
        listed = ", ".join(list(mixed)[:8]) + (" and others" if len(mixed) > 8 else "")
        name, value = next(iter(mixed.items()))
        vary = "vary" if len(mixed) > 1 else "varies"
        raise BadInput(
            f"{path}: {listed} {vary} between runs of one {cell}, and their mean would mix settings: choose one value"
            f" with --where {name}={value}, or leave the column out if it is a result"
        )


def _conditions(where: Sequence[str]) -> Mapping[str, list[str]]:
    conditions: dict[str, list[str]] = {}
    for one in where:
        name, sign, value = one.rpartition("=")
        if not sign or not name:
            raise BadInput(f"--where {one}: expected COL=VALUE, such as bs=256")
        conditions.setdefault(name, []).append(value)
    return conditions


def _equal(text: str, value: str) -> bool:
    """As text, or as numbers."""
    if text == value:
        return True
    try:
        return math.isclose(float(text), float(value), rel_tol=1e-9)
    except ValueError:
        return False


def _is_label(name: str) -> bool:
    """Whether the name says that the column tells runs apart, and is no setting."""
    lower = name.lower()
    return lower in STATE_COLUMNS or bool(REPLICATE.search(lower) or LABEL.search(lower))


def _is_setting(name: str, codes: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether a column that varies within cells looks like a setting and not like a result."""
    if SETTING.match(name.lower()):
        return True
    num_distinct = len(np.unique(codes))
    several = [(start, size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True) if size > 1]
    in_a_cell = np.mean([len(np.unique(codes[start : start + size])) for start, size in several])
    return 2 * num_distinct <= len(codes) and num_distinct <= MANY_VALUES * float(in_a_cell)


def _left_out(states: Counter[str], column: str | None, num_parents: int) -> Iterator[str]:
    if states:
        yield f"left out what has not finished by column {column!r}: {_counts(states)}"
    if num_parents:
        yield f"left out {num_parents} row{'s' if num_parents > 1 else ''} without any setting, such as a parent run"


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
