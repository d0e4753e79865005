"""What the commands print on standard output: tables and notes."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160  # a file or a pipe has no width, and a table must not be cut to rich's 80 columns


def console() -> Console:
    """Standard output."""
    found = Console(highlight=False, emoji=False)
    return found if found.is_terminal else Console(highlight=False, emoji=False, width=_PIPE_WIDTH)


def say(*lines: str) -> None:
    """Print lines as they are, wrapped by the terminal if need be."""
    for line in lines:
        console().print(line, markup=False, soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", text: Sequence[int] = (0,)
) -> None:
    """Print a table.

    Args:
        columns: Headings.
        rows: Cells, as many as headings.
        title: A line above.
        text: Indices of the columns that are words: aligned to the left, and wrapped if they must be. The
            others are numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in text else "right", no_wrap=index not in text)
    for row in rows:
        table.add_row(*(str(cell).replace("[", r"\[") for cell in row))
    console().print(table)
