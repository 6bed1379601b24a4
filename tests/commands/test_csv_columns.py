"""A user's CSV file: the right numbers, or one line that names the file, the line and what is wrong with it."""

import gzip
import os

import numpy as np
import pytest

from muxfer.commands import csv_columns
from muxfer.commands.csv_columns import lines_of, read_columns
from muxfer.errors import BadInput
from tests.refusals import refused

PLAIN = "width,lr,loss\n64,0.001,1.5\n64,0.002,\n128,1e-3,NaN\n"


def write(folder, content):
    path = folder / "runs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder, content, required=("width", "lr", "loss"), **more):
    return read_columns(write(folder, content), required, **more)


SAME = {
    "as it is": PLAIN,
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "a byte-order mark": "\ufeff" + PLAIN,
    "no last line break": PLAIN.rstrip("\n"),
    "blank lines": PLAIN.replace("\n", "\n\n  \n\t\r\n"),
    "spaces after commas": PLAIN.replace(",", ", "),
    "quoted numbers": 'width,lr,loss\n"64","0.001","1.5"\n"64","0.002",""\n"128","1e-3","NaN"\n',
    "other columns": "a,width,b,lr,loss,\nx,64,1,0.001,1.5,\n,64,,0.002,,\ny,128,,1e-3,NaN,\n",
    "quoted text": '"width",note,lr,loss\n64,"a, ""b""\nc",0.001,1.5\n64,"",0.002,\n128,é,1e-3,NaN\n',
    "another order": "loss,lr,width\n1.5,0.001,64\n,0.002,64\nNaN,1e-3,128\n",
    "a space after the last quote": 'width,lr,loss\n64,0.001,"1.5" \n64,0.002,"" \n128,1e-3,"NaN"\t\n',
    "spaces before quotes": '  "width", "lr",loss\n64,  "0.001","1.5"\n "64",0.002, ""\n128,1e-3,NaN\n',
    "other words for nothing": "width,lr,loss\n64,.001,+1.5\n64,2E-3,None\n128.0,0.1e-2,N/A\n",
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("rows_at_once", [256, 1])
def test_harmless_differences_give_the_same_numbers(tmp_path, monkeypatch, case, rows_at_once):
    monkeypatch.setattr(csv_columns, "ROWS_AT_ONCE", rows_at_once)
    columns = read(tmp_path, SAME[case])
    assert list(columns) == ["width", "lr", "loss"]
    np.testing.assert_array_equal(columns["width"], [64, 64, 128])
    np.testing.assert_array_equal(columns["lr"], [0.001, 0.002, 0.001])
    np.testing.assert_array_equal(columns["loss"], [1.5, np.nan, np.nan])
    assert all(column.dtype == np.float64 for column in columns.values())


def test_an_optional_column_is_read_if_the_file_has_it(tmp_path):
    columns = read(tmp_path, PLAIN, ["width"], optional=["loss", "fid", "width"])
    assert list(columns) == ["width", "loss"]


BAD = {
    "an empty file": (b"", "is empty"),
    "an empty first line": ("\n" + PLAIN, "empty first line"),
    "a header alone": ("width,lr,loss\n\n", "no rows"),
    "no header": ("64,0.001,1.5\n64,0.002,1.6\n", "has no header"),
    "a missing column": ("width,lr,los\n1,2,3\n", "no column 'loss': did you mean 'los'?"),
    "a column twice": ("width,lr,loss,loss\n1,2,3,4\n", "2 columns 'loss'"),
    "semicolons": (PLAIN.replace(",", ";"), "by semicolons: expected commas"),
    "tabs": (PLAIN.replace(",", "\t"), "by tabs"),
    "a comment first": ("# my runs\n" + PLAIN, "begins with '# my runs'"),
    "a comment line": (PLAIN + "# done\n", "line 5 has 1 field, the header has 3"),
    "text": (PLAIN + "128,0.002,high\n", "line 5: loss is 'high'"),
    "text far down": (PLAIN.replace("NaN", "1") + "1,2,3\n" * 50 + "\n1,x,3\n", "line 56: lr is 'x'"),
    "a decimal comma": ("width,lr,loss\n64,0,001,1.5\n", "line 2 has 4 fields, the header has 3"),
    "a quoted decimal comma": (
        'width,lr,loss\n64,0.001,"1,5"\n',
        "line 2: loss is '1,5', expected a number with a dec",
    ),
    "thousands": ('width,lr,loss\n"1,024",0.001,1.5\n', "line 2: width is '1,024'"),
    "an underscore": ("width,lr,loss\n1_024,0.001,1.5\n", "line 2: width is '1_024'"),
    "a hexadecimal number": ("width,lr,loss\n0x40,0.001,1.5\n", "line 2: width is '0x40'"),
    "a truth among numbers": ("width,lr,loss\n64,0.001,1.5\n64,0.002,True\n", "line 3: loss is 'True'"),
    "a minus of typesetters": ("width,lr,loss\n64,−1,1.5\n", "line 2: lr is '−1'"),
    "a short row": (PLAIN + "128,0.0\n", "line 5 has 2 fields"),
    "trailing commas": ("width,lr,loss\n64,0.001,1.5,\n64,0.002,1.6,\n", "line 2 has 4 fields"),
    "fields that make up for each other": ("width,lr,loss\n1,2,3,4\n1,2\n", "line 2 has 4 fields"),
    "an open quote": (
        PLAIN + '128,"0.002,1\n128,1,1\n',
        "line 5 is not CSV (unexpected end of data): expected one row a line, each quote closed",
    ),
    "an open quote in the header": ('width,"lr,loss\n1,2,3\n', "line 1 is not CSV (unexpected end of data)"),
    "an open quote in a column of text": (
        'width,lr,loss,note\n1,2,3,"a\n4,5,6,b\n7,8,9,c\n',
        "line 2 is not CSV (unexpected end of data)",
    ),
    "an open quote far from the end": (
        'width,lr,loss,note\n1,2,3,"a\n' + "4,5,6,b\n" * 20_000,
        "line 2 is not CSV (field larger than field limit (131072))",
    ),
    "a quote inside a field": (PLAIN + '128,5"1,2"\n', "line 5: lr is '5\"1', expected a number"),
    "a quote after a quoted field": (PLAIN + '128,"5" "1,2"\n', "line 5 is not CSV (',' expected after '\"')"),
    "quotes inside two lines": (PLAIN + '128,5",1\n128,5",1\n', "line 5: lr is '5\"', expected a number"),
    "an endless line": (PLAIN + "1,2," + "3" * 200_000 + "\n", "line 5 has more than 131072 characters"),
    "an endless header": ("a," * 100_000 + "\n", "first line of more than 131072 bytes"),
    "zero bytes": (PLAIN.replace("\n", "\n\n").encode() + b"128,1\x00,1\n", "line 9 has a zero byte"),
    "another encoding": (PLAIN.encode() + "128,1,é\n".encode("latin-1"), "line 5 has bytes that are not UTF-8"),
    "UTF-16": (PLAIN.encode("utf-16"), "line 1 has bytes that are not UTF-8"),
    "CR alone": (PLAIN.replace("\n", "\r"), "line 1 is not CSV (new-line character seen in unquoted field"),
    "a CR in a row": (PLAIN + "128,1\r,1\n", "line 5 is not CSV (new-line character seen in unquoted field"),
    "gzip": (gzip.compress(PLAIN.encode()), "is gzip: expected a plain CSV file"),
    "a workbook": (b"PK\x03\x04rest", "is zip or xlsx"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("rows_at_once", [256, 2])
def test_a_bad_table_is_refused_in_one_line_that_names_the_file_and_line(tmp_path, monkeypatch, case, rows_at_once):
    monkeypatch.setattr(csv_columns, "ROWS_AT_ONCE", rows_at_once)
    content, expected = BAD[case]
    with refused("runs.csv", expected) as caught:
        read(tmp_path, content)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_path_that_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is a folder: expected a CSV file"):
        read_columns(tmp_path, ["loss"])
    with pytest.raises(BadInput, match="does not exist"):
        read_columns(tmp_path / "none.csv", ["loss"])
    with pytest.raises(BadInput, match="cannot be read"):
        read_columns(tmp_path / ("n" * 300), ["loss"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="no regular file"):
        read_columns(tmp_path / "pipe", ["loss"])


def test_more_rows_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_columns, "MAX_ROWS", 2)
    with pytest.raises(BadInput, match="more than 2 rows"):
        read(tmp_path, PLAIN)


def test_lines_of_counts_blank_lines_and_line_breaks_in_quotes(tmp_path):
    path = write(tmp_path, 'a,b\n1,2\n\n3,"x\ny"\n   \n5,6\r\n7,8')
    assert lines_of(path, [0, 1, 2, 3]) == [2, 4, 7, 8]


def test_numbers_are_read_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(2000, 2)) * 10.0 ** rng.integers(-15, 15, size=(2000, 2))
    lines = "".join(f"{a!r},{b!r}\n" for a, b in numbers.tolist())
    columns = read(tmp_path, "a,b\n" + lines, ["a", "b"])
    np.testing.assert_allclose(np.stack([columns["a"], columns["b"]], axis=1), numbers, rtol=3e-16)
