"""Aligned columns hold every cell whole, and a terminal's settings change nothing."""

import pytest

from muxfer.report.format import show_hours, show_seconds, show_time
from muxfer.report.terminal import table_lines, table_width

ROWS = [["width", "loss", "step"], ["64", "0.5", "17"], ["1024", "diverged@3", ""]]


def test_first_column_is_left_and_others_are_right_by_default():
    assert table_lines(ROWS) == [
        "width        loss  step",
        "64            0.5    17",
        "1024   diverged@3",
    ]


def test_each_column_is_aligned_as_its_letter_says():
    assert table_lines(ROWS, align="rll", indent=2) == [
        "  width  loss        step",
        "     64  0.5         17",
        "   1024  diverged@3",
    ]


def test_cells_are_plain_text_and_never_cut():
    long = "[red]:smile: " + "x" * 500
    assert table_lines([[long, "1"]]) == [f"{long}  1"]
    assert table_lines([["", "a b"], ["", ""]]) == ["  a b", ""]


def test_a_space_at_the_end_of_a_cell_takes_its_column():
    assert table_lines([["a", "1*", "x"], ["b", "2 ", ""]]) == ["a  1*  x", "b  2"]


def test_a_wide_letter_takes_two_columns():
    rows = [["幅", "1"], ["ab", "2"]]
    assert table_lines(rows) == ["幅  1", "ab  2"]
    assert table_width(rows) == 5


@pytest.mark.parametrize("name", ["COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM", "JUPYTER_COLUMNS"])
def test_the_environment_changes_nothing(monkeypatch, name):
    monkeypatch.setenv(name, "20")
    assert table_lines([["x" * 60, "y" * 60]]) == ["x" * 60 + "  " + "y" * 60]


def test_no_rows_give_no_lines():
    assert table_lines([]) == []
    assert table_width([]) == 0


@pytest.mark.parametrize(("rows", "align"), [([["a", "b"], ["c"]], ""), ([["a", "b"]], "l"), ([["a"]], "c")])
def test_uneven_rows_and_wrong_letters_are_refused(rows, align):
    with pytest.raises(ValueError, match="align is"):
        table_lines(rows, align=align)


def test_control_characters_become_spaces():
    assert table_lines([["a\nb", "\x1b[31m1"], ["c\td", "2"]]) == ["a b   [31m1", "c d       2"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3599.7, "1h00m"), (7384, "2h03m")]
)
def test_seconds_are_rounded_before_they_are_split(seconds, text):
    assert show_seconds(seconds) == text


@pytest.mark.parametrize(("hours", "text"), [(None, "-"), (0.5, "30m00s"), (99, "99h00m"), (1234, "1.23e+03 h")])
def test_planned_hours(hours, text):
    assert show_hours(hours) == text


@pytest.mark.parametrize(("seconds", "text"), [(61, "61.0 s"), (180, "3.0 min"), (9000, "2.5 h")])
def test_measured_times(seconds, text):
    assert show_time(seconds) == text
