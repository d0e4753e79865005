"""How a table fits into a width: its columns fold at words, or each row becomes lines of its own. No word is cut."""

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

GAP = 2  # between two columns

_BREAK = re.compile(r"(?<=\s)(?=\S)|(?<=[,:])(?=[A-Za-z])")  # before a word, and inside of tome:order=leave,layers=even


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most ``width``, but for words that are longer."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and cell_len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def narrowest(text: str) -> int:
    """The least width that :func:`wrap` can keep to."""
    return max(cell_len(piece.rstrip()) for piece in _pieces(text))


def column_widths(
    columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int], width: int
) -> list[int] | None:
    """How wide each column is where all have ``width`` together; ``None`` if something would have to be cut.

    Args:
        columns: Headings, which fold.
        rows: Cells.
        words: Indices of the columns whose cells fold too.
        width: That there is, gaps included.
    """
    found, least = [], []
    for index, heading in enumerate(columns):
        cells = [row[index] for row in rows]
        found.append(max(map(cell_len, [heading, *cells])))
        fold = narrowest if index in words else cell_len
        least.append(max([narrowest(heading), *map(fold, cells)]))
    room = width - GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(found) > room:
        widest = max((i for i in range(len(found)) if found[i] > least[i]), key=found.__getitem__)
        found[widest] -= 1
    return found


def records(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """The lines of a table that is too wide: each row a paragraph with a line per cell, behind its heading."""
    name_width = max(map(cell_len, columns))
    longest = max((narrowest(cell) for row in rows for cell in row), default=0)
    beside = name_width + GAP + longest <= width
    for number, row in enumerate(rows):
        if number:
            yield ""
        for name, cell in zip(columns, row, strict=True):
            if cell and beside:
                yield from _beside(name, cell, name_width, width)
            elif cell:
                yield from wrap(name, width)
                yield from (f"  {line}" for line in wrap(cell, width - 2))


def _beside(name: str, cell: str, name_width: int, width: int) -> Iterator[str]:
    heads = [name + " " * (name_width - cell_len(name)), *[" " * name_width] * len(cell)]
    for head, line in zip(heads, wrap(cell, width - name_width - GAP), strict=False):
        yield f"{head}{' ' * GAP}{line}"


def _pieces(text: str) -> list[str]:
    return [piece for line in text.splitlines() for piece in _BREAK.split(line + " ")] or [""]
