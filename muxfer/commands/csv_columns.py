"""Columns of numbers from a user's CSV file: the exact numbers, or one line that says what is wrong with the file.

The csv module of the standard library reads it, because pandas and pyarrow accept what would change a verdict. pandas
fills a row that is too short with NaN, and an empty metric stands for a run that diverged. pyarrow takes a quote that
is never closed for a field, and loses all rows after it without a word. It also refuses spaces before a quote.

Every refusal names the file and, where there is one, the line as an editor numbers it (the header is line 1).

A file of a million rows takes 2.6 s of CPU time and 51 MB. pandas after a pass over the bytes, which was here before,
took 1.3 s and 153 MB (2026-11-30).
"""

import csv
import math
import re
import stat
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from muxfer.errors import BadInput, nearest

MAX_ROWS = 50_000_000  # A column that is read takes 400 MB for so many rows
MAX_LINE_BYTES = 1 << 17  # The longest field that the csv module takes
ROWS_AT_ONCE = 256  # So few rows stay in the processor's cache while they become numbers: twice as fast as 16,384
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII)
NOT_A_NUMBER = frozenset(
    ("", "nan", "NaN", "-nan", "-NaN", "NA", "<NA>", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "null", "NULL", "None")
)
"""The words for a missing number that pandas writes or reads, and a few of old C libraries."""
MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip or xlsx", b"PAR1": "Parquet", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}

_Row = tuple[int, list[str]]  # The line on which a row begins, and its fields


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A column as text: `distinct` values in the order in which they appear, and the index of each row's, [N]."""

    distinct: Sequence[str]
    codes: np.ndarray

    def is_any(self, words: Collection[str]) -> bool:
        """Whether one of the values is one of these words, in any case."""
        return any(text.lower() in words for text in self.distinct)


def column_names(path: str | Path) -> list[str]:
    """The names of the columns, in their order."""
    return _header(Path(path))


def read_columns(path: str | Path, required: Sequence[str], *, optional: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return the named columns as float64 arrays, in the file's order of rows; NaN where a field is empty. An optional
    column that the file lacks is left out. The file is plain UTF-8 with commas, a header and decimal points. Quotes,
    CRLF, a byte-order mark and spaces after commas do no harm. Anything else is BadInput, in one line.
    """
    path = Path(path)
    header = _header(path)
    places = {name: _place(path, header, name) for name in required}
    places |= {name: _place(path, header, name) for name in optional if name in header and name not in places}
    columns = {name: array("d") for name in places}
    rows, num_rows = _rows(path, num_fields=len(header)), 0
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        num_rows += len(chunk)
        if num_rows > MAX_ROWS:
            raise BadInput(f"{path} has more than {MAX_ROWS} rows: average or sample them first")
        for name, place in places.items():
            columns[name].extend(_numbers(path, name, place, chunk))
    if num_rows == 0:
        raise BadInput(f"{path} has a header and no rows: expected one row a run")
    return {name: np.frombuffer(column) for name, column in columns.items()}


def read_texts(path: str | Path, names: Sequence[str], *, most: int = MAX_ROWS) -> Mapping[str, Texts]:
    """Return the named columns of the first `most` rows as text, without spaces around it."""
    path = Path(path)
    header = _header(path)
    places = {name: _place(path, header, name) for name in names}
    known: dict[str, dict[str, int]] = {name: {} for name in names}
    codes = {name: array("i") for name in names}
    rows = islice(_rows(path, num_fields=len(header)), most) if names else iter(())
    for _, fields in rows:
        for name, place in places.items():
            own = known[name]
            codes[name].append(own.setdefault(fields[place].strip(), len(own)))
    return {name: Texts(distinct=list(known[name]), codes=np.frombuffer(codes[name], dtype=np.int32)) for name in names}


def hashes_of(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """A hash of all fields of each of these rows, which ascend and are counted from 0: [N]."""
    path = Path(path)
    wanted = set(rows.tolist())
    all_rows = islice(_rows(path, num_fields=len(_header(path))), int(rows[-1]) + 1)
    return np.array([hash(tuple(fields)) for number, (_, fields) in enumerate(all_rows) if number in wanted])


def lines_of(path: str | Path, rows: Sequence[int]) -> list[int]:
    """Return the lines on which these rows begin. Rows are counted from 0."""
    path = Path(path)
    numbers = set(rows)
    all_rows = _rows(path, num_fields=len(_header(path)))
    lines = {number: line for number, (line, _) in enumerate(islice(all_rows, max(rows) + 1)) if number in numbers}
    return [lines[row] for row in rows]


def _header(path: Path) -> list[str]:
    """Return the names in the first line. A file that is no plain text is refused."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path} is a folder: expected a CSV file")
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path} is no regular file: expected a CSV file; write the table to a file first")
        with path.open("rb") as file:
            first = file.readline(MAX_LINE_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: expected a CSV file") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for magic, kind in MAGIC.items():
        if first.startswith(magic):
            raise BadInput(f"{path} is {kind}: expected a plain CSV file; unpack or export it first")
    if len(first) > MAX_LINE_BYTES:
        raise BadInput(f"{path} has a first line of more than {MAX_LINE_BYTES} bytes: expected the names of columns")
    try:
        text = first.decode().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _refusal(path, 1, "has bytes that are not UTF-8; save the table as UTF-8 CSV") from None
    if not text.strip():
        raise BadInput(f"{path} {'is empty' if not first else 'has an empty first line'}: expected names of columns")
    try:
        return [name.strip() for name in next(csv.reader([text], skipinitialspace=True, strict=True))]
    except csv.Error as error:
        raise _refusal(
            path, 1, f"is not CSV ({_reason(error)}); expected the names of the columns in one line"
        ) from None


def _place(path: Path, header: Sequence[str], name: str) -> int:
    """Return the index of a column, or explain why the table has no such column."""
    places = [i for i, known in enumerate(header) if known == name]
    if len(places) > 1:
        raise BadInput(f"{path} has {len(places)} columns {name!r}: name each column once")
    if places:
        return places[0]
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and mark in header[0]:
            raise BadInput(f"{path} separates its columns by {called}: expected commas, and decimal points")
    if all(NUMBER.fullmatch(known) or known in NOT_A_NUMBER for known in header):
        raise BadInput(f"{path} has no header, its first line is numbers: put the names of the columns there")
    if header[0].startswith("#"):
        raise BadInput(f"{path} begins with {header[0][:20]!r}: expected the names of the columns, without a '#'")
    listed = {known[:40] for known in header if known}
    hint = nearest(name, listed) if len(listed) <= 30 else nearest(name, listed)[:400]
    raise BadInput(f"{path} has no column {name!r}: {hint}")


def _rows(path: Path, *, num_fields: int) -> Iterator[_Row]:
    """Yield every row after the header that is not blank. Each has `num_fields` fields."""
    with path.open(encoding="utf-8", newline="\n") as file:
        reader = csv.reader(_lines(path, file), skipinitialspace=True, strict=True)
        line = 2
        try:
            next(file)
            for fields in reader:
                if len(fields) == num_fields:
                    yield line, fields
                elif len(fields) > 1 or "".join(fields).strip():
                    given = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
                    what = f"has {given}, the header has {num_fields}: expected as many ({','.join(fields)[:40]!r})"
                    raise _refusal(path, line, f"{what}; decimals are written with a point")
                line = reader.line_num + 2
        except UnicodeDecodeError:
            undecodable = _undecodable_line(path)
            raise _refusal(path, undecodable, "has bytes that are not UTF-8; save the table as UTF-8 CSV") from None
        except csv.Error as error:
            what = (
                f"is not CSV ({_reason(error)}): expected one row a line, each quote closed and doubled inside a field"
            )
            raise _refusal(path, line, what) from None


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """Yield the lines after the header, without spaces at their ends, where strict CSV takes none after a quote. A line
    that is too long is refused before all of it is read.
    """
    number = 1
    while text := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(text) > MAX_LINE_BYTES:
            raise _refusal(path, number, f"has more than {MAX_LINE_BYTES} characters; expected one row a line")
        if "\0" in text:
            raise _refusal(path, number, "has a zero byte, so it is no text; save the table as UTF-8 CSV")
        yield text if text[-2:-1] not in (" ", "\t") else text.rstrip(" \t\r\n") + "\n"


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            try:
                content.decode()
            except UnicodeDecodeError:
                return number
    raise BadInput(f"{path} changed while it was read; try again")


def _numbers(path: Path, name: str, place: int, rows: Sequence[_Row]) -> Iterable[float]:
    """Return one column of these rows as numbers; NaN where a field is empty."""
    texts = [fields[place] or "nan" for _, fields in rows]
    joined = "".join(texts)
    if joined.isascii() and "_" not in joined:  # float() also reads 1_000 and the digits of other scripts
        with suppress(ValueError):
            return list(map(float, texts))
    return [_number(path, name, line, fields[place]) for line, fields in rows]


def _number(path: Path, name: str, line: int, text: str) -> float:
    if text in NOT_A_NUMBER:
        return math.nan
    if NUMBER.fullmatch(text.strip(" \t")):
        return float(text)
    what = f"{name} is {text[:40]!r}, expected a number with a decimal point, or an empty field for none"
    raise BadInput(f"{path}, line {line}: {what}")


def _reason(error: csv.Error) -> str:
    """The message without the advice for programmers that some have behind a dash."""
    return str(error).partition(" - ")[0]


def _refusal(path: Path, line: int, what: str) -> BadInput:
    return BadInput(f"{path}, line {line} {what}")
