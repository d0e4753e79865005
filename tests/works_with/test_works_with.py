"""Every cell of the table in docs/works_with.md is what the page says: right, or refused in words."""

import pytest
import torch

from tests.works_with import table
from tests.works_with.cells import RIGHT
from tests.works_with.families import COLUMNS

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages and torch's tracers have their own

CELLS = table.read()


def test_the_page_has_every_row_and_no_empty_cell():
    assert list(dict.fromkeys(row for row, _ in CELLS)) == list(table.ROWS)
    assert all(CELLS.values())


@pytest.mark.parametrize(("row", "column"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_cell(row, column):
    torch.use_deterministic_algorithms(False)
    assert table.cell(row, COLUMNS[column]) == CELLS[row, column]


def test_our_own_models_are_refused_nothing_that_is_put_on_their_layers():
    for (row, column), found in CELLS.items():
        if row in table.ADDITIONS and COLUMNS[column].ours:
            assert found == RIGHT, (row, column)
