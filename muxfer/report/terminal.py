"""Aligned columns for a terminal: every command that prints a table prints it through here.

rich lays the columns out. The result is plain text without colour or markup, the same on a terminal and in a pipe.
A cell is never cut or wrapped. A table that is too wide needs fewer columns: see `table_width`.
"""

import re
from collections.abc import Sequence

GAP = 2  # Spaces between two columns

HELD = "\ue000"
"""Stands for a space while rich lays a table out: rich strips those at the end of a cell that is aligned right."""


def table_lines(rows: Sequence[Sequence[str]], *, align: str = "", indent: int = 0) -> list[str]:
    """Return one line for each row, with its columns aligned and without spaces at its end.

    A header is simply the first row. `align` has a letter for each column, "l" or "r". By default the first column
    is aligned left and the others right. `indent` is the number of spaces before each line. A control character in a
    cell, such as a line break, becomes a space. Rows of different length raise ValueError.
    """
    if not rows:
        return []
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    align = align or "l" + "r" * (len(rows[0]) - 1)
    if set(align) - {"l", "r"} or {len(row) for row in rows} != {len(align)}:
        raise ValueError(f"align is {align!r}: write one l or r for each cell of a row, and rows of equal length")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, GAP, 0, 0))
    for letter in align:
        table.add_column(justify="left" if letter == "l" else "right", no_wrap=True)
    # One cell of many lines for each column takes a third of the time that a cell for each line takes.
    table.add_row(*(Text("\n".join(map(_printable, column))) for column in zip(*rows, strict=True)))
    width = max(table_width(rows), 1)
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False, _environ={})
    lines = console.render_lines(table, pad=False)
    texts = ("".join(part.text for part in line).replace(HELD, " ") for line in lines)
    return [(" " * indent + text).rstrip() for text in texts]


def table_width(rows: Sequence[Sequence[str]]) -> int:
    """Return how many columns of a terminal the table takes. A wide letter (幅) takes two."""
    from rich.cells import cell_len

    widths = [max(cell_len(_printable(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return sum(widths) + GAP * max(len(widths) - 1, 0)


def _printable(cell: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", cell).replace(" ", HELD)
