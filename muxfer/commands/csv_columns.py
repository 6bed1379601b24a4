"""Columns of numbers from anybody's CSV file: read by pandas, once every line is known to have all its fields.

pandas alone shifts or fills a row that is too long or too short and says nothing, and a metric that it filled would
pass for a run that diverged. So the file is read twice: one pass over its bytes counts the fields of each line and
refuses what is no table, a second one parses the wanted columns. Every refusal names the file and, where there is one,
the line as an editor numbers it (the header is line 1).
"""

import csv
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muxfer.errors import BadInput, nearest

MAX_ROWS = 50_000_000
"""A wanted column of so many rows takes 400 MB."""

MAX_LINE_BYTES = 1 << 17
"""The longest field that the csv module takes."""

BLOCK_BYTES = 1 << 20
ROWS_AT_ONCE = 1_000_000

COMMA, NEWLINE, SPACE = b",\n "
QUOTE = b'"'
MAX_SPACES = 64
BLANK = b" \t\r\n"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII)
NOTHING = frozenset(
    ("", "nan", "NaN", "-nan", "-NaN", "NA", "<NA>", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "null", "NULL", "None")
)
"""Words that pandas takes for no number (and a few of old C libraries)."""

MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip or xlsx", b"PAR1": "Parquet", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Some megabytes of whole records that are not blank: where each starts and ends in the bytes, and its line."""

    content: bytes
    first_line: int
    starts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    commas: np.ndarray
    """Those that separate fields."""

    def num_fields(self) -> np.ndarray:
        return np.diff(np.searchsorted(self.commas, self.ends), prepend=0) + 1

    def has_fields(self, number: int) -> bool:
        """Whether every record has that many fields: as num_fields, several times faster."""
        if len(self.commas) != len(self.starts) * (number - 1):
            return False
        if number == 1 or not len(self.starts):
            return True
        by_record = self.commas.reshape(-1, number - 1)
        return bool((by_record[:, 0] >= self.starts).all() and (by_record[:, -1] < self.ends).all())

    def text(self, record: int) -> str:
        return self.content[self.starts[record] : self.ends[record]].decode().rstrip("\r")

    def fields(self, record: int) -> list[str]:
        return next(csv.reader([self.text(record)], skipinitialspace=True))


def read_columns(path: str | Path, required: Sequence[str], *, optional: Sequence[str] = ()) -> Mapping[str, Any]:
    """The named columns as float64 arrays, in the file's order of rows; NaN where a field is empty.

    An optional column that the file lacks is left out. Plain UTF-8 with commas, a header and decimal points; quotes,
    CRLF, a byte-order mark and spaces after commas do no harm. BadInput for whatever else it is, in one line.
    """
    path = Path(path)
    header = _header(path)
    wanted = {name: _place(path, header, name) for name in required}
    wanted |= {name: _place(path, header, name) for name in optional if name in header and name not in wanted}
    num_rows = sum(len(block.starts) for block in _checked(path, header))
    if num_rows == 0:
        raise BadInput(f"{path} has a header and no rows: expected one row a run")
    return _parse(path, wanted, num_rows=num_rows, num_columns=len(header))


def lines_of(path: str | Path, rows: Sequence[int]) -> list[int]:
    """The lines on which these rows (counted from 0, ascending) stand."""
    found, seen = [], 0
    for block in _blocks(Path(path)):
        count = len(block.starts)
        found += [int(block.lines[row - seen]) for row in rows if seen <= row < seen + count]
        seen += count
        if seen > rows[-1]:
            break
    return found


def _header(path: Path) -> list[str]:
    """The first line's names; refuses what is no plain text file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(f"{path} is a folder: expected a CSV file")
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path} is no regular file (it is read twice): write the table to a file first")
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
    text = _decoded(path, first, line=1).removeprefix("\ufeff").rstrip("\r\n")
    if not text.strip():
        raise BadInput(f"{path} {'is empty' if not first else 'has an empty first line'}: expected names of columns")
    if text.count('"') % 2:
        raise BadInput(f"{path}, line 1: a quote is not closed; expected the names of the columns in one line")
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True))]


def _place(path: Path, header: Sequence[str], name: str) -> int:
    places = [i for i, known in enumerate(header) if known == name]
    if len(places) > 1:
        raise BadInput(f"{path} has {len(places)} columns {name!r}: name each column once")
    if places:
        return places[0]
    for mark, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(header) == 1 and mark in header[0]:
            raise BadInput(f"{path} separates its columns by {called}: expected commas, and decimal points")
    if all(NUMBER.fullmatch(known) or known in NOTHING for known in header):
        raise BadInput(f"{path} has no header, its first line is numbers: put the names of the columns there")
    if header[0].startswith("#"):
        raise BadInput(f"{path} begins with {header[0][:20]!r}: expected the names of the columns, without a '#'")
    listed = {known[:40] for known in header if known}
    told = nearest(name, listed) if len(listed) <= 30 else nearest(name, listed)[:400]
    raise BadInput(f"{path} has no column {name!r}: {told}")


def _blocks(path: Path) -> Iterator[_Block]:
    """What follows the header, cut at line breaks that stand in no quotes."""
    rest, line = b"", 2
    with path.open("rb") as file:
        file.readline()
        while True:
            read = file.read(BLOCK_BYTES)
            content = rest + read
            if not read and content and not content.endswith(b"\n"):
                content += b"\n"
            array = np.frombuffer(content, dtype=np.uint8)
            breaks, commas = np.flatnonzero(array == NEWLINE), np.flatnonzero(array == COMMA)
            ends = breaks
            if QUOTE in content:
                inside = np.cumsum(array == QUOTE[0], dtype=np.uint8) & 1
                if len(stray := _stray_quotes(array, inside)):
                    told = f"line {line + np.searchsorted(breaks, stray[0])} has a quote inside a field"
                    raise BadInput(f"{path}, {told}; quote the whole field, and double the quotes inside it")
                ends, commas = breaks[inside[breaks] == 0], commas[inside[commas] == 0]
            kept = int(ends[-1]) + 1 if len(ends) else 0
            starts = np.append(0, ends + 1)[:-1]
            lines = line + np.searchsorted(breaks, starts)
            rest, first_line, line = content[kept:], line, line + int(np.searchsorted(breaks, kept))
            too_long = lines[ends - starts > MAX_LINE_BYTES].tolist()
            if too_long or len(rest) > MAX_LINE_BYTES or (rest and not read):
                raise BadInput(
                    f"{path}, line {min(too_long, default=line)}: more than {MAX_LINE_BYTES} bytes, or a quote that is"
                    " not closed; expected one row a line"
                )
            blank = [i for i in np.flatnonzero(array[starts] <= SPACE) if not content[starts[i] : ends[i]].strip(BLANK)]
            if blank:
                starts, ends, lines = (np.delete(each, blank) for each in (starts, ends, lines))
            commas = commas[commas < kept]
            yield _Block(
                content=content[:kept], first_line=first_line, starts=starts, ends=ends, lines=lines, commas=commas
            )
            if not read:
                return


def _stray_quotes(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Where a quote opens neither at a field's start nor as the second of a pair: pandas takes it for a letter."""
    opens = np.flatnonzero((array == QUOTE[0]) & (inside == 1))
    opens = opens[(opens > 0) & (array[opens - 1] != QUOTE[0])]
    before = opens - 1
    for _ in range(MAX_SPACES):
        if not (spaces := (array[before] == SPACE) & (before > 0)).any():
            break
        before = before - spaces
    starts = (array[before] == COMMA) | (array[before] == NEWLINE) | ((before == 0) & (array[before] == SPACE))
    return opens[~starts]


def _checked(path: Path, header: Sequence[str]) -> Iterator[_Block]:
    """The blocks, once their text is plain and each record has the header's fields."""
    num_rows = 0
    for block in _blocks(path):
        _decoded(path, block.content, line=block.first_line)
        if not block.has_fields(len(header)):
            counts = block.num_fields()
            record = int(np.flatnonzero(counts != len(header))[0])
            given = f"{counts[record]} field{'s' if counts[record] > 1 else ''}"
            raise BadInput(
                f"{path}, line {block.lines[record]} has {given}, the header has {len(header)}:"
                f" expected as many ({block.text(record)[:40]!r}); decimals are written with a point"
            )
        num_rows += len(block.starts)
        if num_rows > MAX_ROWS:
            raise BadInput(f"{path} has more than {MAX_ROWS} rows: average or sample them first")
        yield block


def _decoded(path: Path, content: bytes, *, line: int) -> str:
    """Text without zero bytes and lone carriage returns, both of which pandas would take for the end of something."""
    place, what = -1, ""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        place, what = error.start, "bytes that are not UTF-8"
    else:
        if "\0" in text:
            place, what = content.find(b"\0"), "a zero byte: it is no text"
        elif "\r" in text and (lone := re.search(rb"\r(?!\n)", content)):
            place, what = lone.start(), "a carriage return inside it"
    if place >= 0:
        raise BadInput(
            f"{path}, line {line + content.count(NEWLINE, 0, place)} has {what}; save the table as UTF-8 CSV"
        )
    return text


def _parse(path: Path, wanted: Mapping[str, int], *, num_rows: int, num_columns: int) -> dict[str, Any]:
    import pandas

    columns = {name: np.empty(num_rows) for name in wanted}
    done = 0
    with path.open("rb") as file:
        file.readline()
        reader = pandas.read_csv(
            file,
            header=None,
            names=range(num_columns),
            index_col=False,
            usecols=sorted(set(wanted.values())),
            dtype="float64",
            skipinitialspace=True,
            chunksize=ROWS_AT_ONCE,
            engine="c",
        )
        try:
            for frame in reader:
                if done + len(frame) <= num_rows:
                    for name, place in wanted.items():
                        columns[name][done : done + len(frame)] = frame[place].to_numpy()
                done += len(frame)
        except (ValueError, OverflowError) as error:
            raise _text_in_numbers(path, wanted, first=done, error=error) from None
    if done != num_rows:
        raise BadInput(f"{path} changed while it was read: {done} rows, {num_rows} before; try again")
    return columns


def _text_in_numbers(path: Path, wanted: Mapping[str, int], *, first: int, error: Exception) -> BadInput:
    """What pandas could not read, by line and column: it names neither."""
    seen = 0
    for block in _blocks(path):
        count = len(block.starts)
        for record in range(max(first - seen, 0), count):
            fields = block.fields(record)
            for name, place in wanted.items():
                text = fields[place]
                if not NUMBER.fullmatch(text.strip(" \t")) and text not in NOTHING:
                    return BadInput(
                        f"{path}, line {block.lines[record]}: {name} is {text[:40]!r}, expected a number with a decimal"
                        " point, or an empty field for none"
                    )
        seen += count
        if seen >= first + ROWS_AT_ONCE:
            break
    return BadInput(f"{path}, after line {first + 1}: {str(error).splitlines()[0][:200]}; expected numbers")
