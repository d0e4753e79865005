"""Rows beside the dense model: differences are paired, and speeds are free of the machine's drift."""

import pytest
import torch

from mtrkit.errors import InputError
from mtrkit.measure import paired_difference
from mtrkit.measure.candidates import DENSE
from mtrkit.measure.comparison import compare_with_dense
from mtrkit.measure.evaluation import pack_right


def row(right, **more):
    share = sum(right) / len(right)
    measured = {"model": "vim", "method": DENSE, "amount": "0", "gflops": 2.0, "n": len(right), "top1": share}
    bounds = {"top1_low": share - 0.1, "top1_high": share + 0.1, "right": pack_right(torch.tensor(right))}
    return measured | bounds | more


DENSE_ROW = row([True, True, False, True])
REDUCED = row([True, False, False, True], method="mtr", amount="0.3", gflops=1.4)


def test_differences_are_paired():
    dense, reduced = compare_with_dense([DENSE_ROW, REDUCED])
    expected = paired_difference(torch.tensor([1, 0, 0, 1]).bool(), torch.tensor([1, 1, 0, 1]).bool())
    assert dense.difference is None and reduced.difference == expected and expected.share == -0.25
    assert (reduced.method, reduced.amount, reduced.gflops, reduced.top1) == ("mtr", "0.3", 1.4, 0.5)
    assert dense.amount == "" and dense.dense and not reduced.dense


def test_rows_read_from_csv_are_the_same():
    as_text = [{name: str(value) for name, value in one.items()} for one in (DENSE_ROW, REDUCED)]
    assert compare_with_dense(as_text) == compare_with_dense([DENSE_ROW, REDUCED])


def test_speeds_are_free_of_drift():
    """The machine was half as fast when the second row was timed, and the smaller model's beside the first."""
    dense = DENSE_ROW | {"images_per_second": 100.0, "speedup": 1.0, "timed_beside": "vim"}
    reduced = REDUCED | {"images_per_second": 75.0, "speedup": 1.5, "timed_beside": "vim"}
    smaller = dense | {"model": "nano", "images_per_second": 60.0, "speedup": 1.2}
    found = compare_with_dense([dense, reduced, smaller])
    assert [one.images_per_second for one in found] == [100, 150, 120]
    assert compare_with_dense([dense, REDUCED])[1].images_per_second is None


def test_there_must_be_a_dense_model():
    with pytest.raises(InputError, match="no dense model"):
        compare_with_dense([REDUCED])
