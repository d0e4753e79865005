"""The table in docs/works_with.md: made by ``python -m tests.works_with.table``, held against the code by the test."""

from pathlib import Path

from mtrkit.errors import MtrkitError
from tests.works_with.additions import ADDITIONS
from tests.works_with.cells import ABSENT, FAILS_DENSE, REFUSED, RIGHT, outcome
from tests.works_with.families import COLUMNS, Family
from tests.works_with.situations import SITUATIONS, Absent, FailsDense

PAGE = Path(__file__).parents[2] / "docs" / "works_with.md"
MARK = "<!-- table: python -m tests.works_with.table -->"
ROWS = {**ADDITIONS, **SITUATIONS}


def cell(row: str, family: Family) -> str:
    """What happens; fails if it is neither right nor refused in words."""
    if row in ADDITIONS:
        return outcome(family, ADDITIONS[row])
    try:
        SITUATIONS[row].check(family)
    except MtrkitError as error:
        assert len(str(error)) > 60, f"the refusal says too little: {error}"
        return REFUSED
    except FailsDense:
        return FAILS_DENSE
    except Absent:
        return ABSENT
    return RIGHT


def read() -> dict[tuple[str, str], str]:
    """The table as the page has it: (row, column) → cell."""
    lines = PAGE.read_text().split(MARK)[1].strip().splitlines()[2:]
    rows = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in lines}
    titles = {title.title: name for name, title in ROWS.items()}
    return {
        (titles[title], name): found
        for title, cells in rows.items()
        for name, found in zip(COLUMNS, cells, strict=True)
    }


def write() -> None:
    """Measure every cell and write the page's table anew."""
    lines = ["| | " + " | ".join(family.title for family in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in ROWS.items():
        lines.append(f"| {row.title} | " + " | ".join(cell(name, family) for family in COLUMNS.values()) + " |")
    head = PAGE.read_text().split(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
