"""What torch's exporter does not translate: the recurrence, and sorts that keep the order of equal values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, INT64, graph, script
from onnxscript import opset18 as op
from onnxscript.ir import DataType
from onnxscript.onnx_types import TensorType
from onnxscript.values import Opset

_DOMAIN = Opset("mtrkit", 1)
_SORTED_BY_RUNTIMES = (DataType.FLOAT, DataType.DOUBLE, DataType.INT32, DataType.INT64)


@script(_DOMAIN, default_opset=op)
def recurrence(step: FLOAT, x: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> tuple[FLOAT, FLOAT]:
    """Arguments and results of :func:`mtrkit.scan.standard.recurrence_in_chunks`.

    ONNX has an operator of its own for loops over a sequence: six nodes, for any number of tokens.
    """
    zero = op.Constant(value_floats=[0.0])
    first = op.Gather(x, op.Constant(value_int=0), axis=0)
    start = op.Mul(op.Mul(first, A), zero)

    @graph()
    def advance(state, step_now, x_now, B_now, C_now):  # type: ignore[no-untyped-def]
        decay = op.Exp(op.Mul(step_now, A))
        after = op.Add(op.Mul(decay, state), op.Mul(x_now, B_now))
        y_now = op.MatMul(C_now, after)
        return after, y_now

    last, y = op.Scan(start, step, x, B, C, body=advance, num_scan_inputs=4)
    return y, last


def stable_sort(
    self: TensorType, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[TensorType, INT64]:
    """``TopK`` of all: of equal values it takes that of the lower index first."""
    del stable
    source: Any = self
    small = source.dtype not in _SORTED_BY_RUNTIMES
    numbers = op.Cast(source, to=DataType.INT32) if small else source
    count = op.Reshape(op.Gather(op.Shape(numbers), op.Constant(value_int=dim), axis=0), op.Constant(value_ints=[1]))
    values, indices = op.TopK(numbers, count, axis=dim, largest=int(descending), sorted=1)
    return (op.Cast(values, to=source.dtype) if small else values), indices


def translations() -> dict[Callable[..., Any], Callable[..., Any] | Sequence[Callable[..., Any]]]:
    """The table that ``torch.onnx.export`` takes."""
    return {torch.ops.mtrkit.recurrence.default: recurrence, torch.ops.aten.sort.stable: stable_sort}
