"""What the commands print on standard output: tables and sentences for people, or one JSON document for programs."""

import dataclasses
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtrkit.cli.tables import GAP, column_widths, records, wrap

_PIPE_WIDTH = 160  # of tables in a file or a pipe, which has no width of its own


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a command says what it found.

    Attributes:
        as_json: Whether a program reads it (--json): sentences and tables are left out then.
    """

    as_json: bool = False

    def say(self, *lines: str) -> None:
        """Print sentences."""
        if not self.as_json:
            say(*lines)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", text: Sequence[int] = (0,)
    ) -> None:
        """Print a table, see :func:`print_table`."""
        if not self.as_json:
            print_table(columns, rows, title, text)

    def document(self, found: Mapping[str, Any]) -> None:
        """Print everything as one JSON object, if a program reads it."""
        if self.as_json:
            _write(json.dumps(plain(found), indent=1, allow_nan=False))


def say(*lines: str) -> None:
    """Print lines, folded at words where there is a width."""
    width = _width()
    for line in lines:
        if width is None or not line:
            _write(line)
        else:
            _write(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "", text: Sequence[int] = (0,)
) -> None:
    """Print a table, folded to the width of the terminal; nothing is ever cut.

    Args:
        columns: Headings.
        rows: Cells, as many as headings.
        title: A line above.
        text: Indices of the columns that are words: aligned to the left, and folded if they must be. The
            others are numbers.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    width = _width()
    widths = column_widths(columns, cells, text, width or _PIPE_WIDTH)
    say("", *([title] if title else []))
    if widths is None and width is not None:
        _write("\n".join(records(columns, cells, width)))
    else:
        _print_columns(columns, cells, widths or column_widths(columns, cells, text, sys.maxsize) or [], text)


def _print_columns(
    columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], text: Sequence[int]
) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for index, (heading, width) in enumerate(zip(columns, widths, strict=True)):
        justify: Any = "left" if index in text else "right"
        table.add_column(_folded(heading, width), justify=justify, width=width, no_wrap=True)
    for row in cells:
        table.add_row(*(_folded(cell, width) for cell, width in zip(row, widths, strict=True)))
    console = Console(highlight=False, emoji=False, width=sum(widths) + GAP * len(widths))
    console.print(table)


def _folded(cell: str, width: int) -> Text:
    return Text("\n".join(wrap(cell, width)))


def _width() -> int | None:
    """What to fold to: COLUMNS, or the width of the terminal; ``None`` for a file or a pipe."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    found = Console()
    return found.width if found.is_terminal else None


def _write(text: str) -> None:
    """Print text as it is, whatever its length."""
    sys.stdout.write(f"{text}\n")


def plain(value: Any) -> Any:
    """The same in what JSON knows: lists, objects, text, finite numbers, and null for other ones."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value) if isinstance(value, PurePath) else repr(value)
