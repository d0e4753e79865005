"""What torch's exporter does not translate: the recurrence, and sorts that keep the order of equal values."""

from collections.abc import Callable
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
def _forward(step: FLOAT, x: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> tuple[FLOAT, FLOAT]:
    """Token by token, from the first."""
    shape = op.Shape(op.Mul(op.Gather(x, op.Constant(value_int=0), axis=0), A))
    start = op.Expand(op.Constant(value_floats=[0.0]), shape)

    @graph()
    def advance(state, step_now, x_now, B_now, C_now):  # type: ignore[no-untyped-def]
        decay = op.Exp(op.Mul(step_now, A))
        after = op.Add(op.Mul(decay, state), op.Mul(x_now, B_now))
        y_now = op.MatMul(C_now, after)
        return after, y_now

    last, y = op.Scan(start, step, x, B, C, body=advance, num_scan_inputs=4)
    return y, last


@script(_DOMAIN, default_opset=op)
def _backward(step: FLOAT, x: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> tuple[FLOAT, FLOAT]:
    """The same from the last; a script is read as it is written, so nothing can be shared."""
    shape = op.Shape(op.Mul(op.Gather(x, op.Constant(value_int=0), axis=0), A))
    start = op.Expand(op.Constant(value_floats=[0.0]), shape)

    @graph()
    def advance(state, step_now, x_now, B_now, C_now):  # type: ignore[no-untyped-def]
        decay = op.Exp(op.Mul(step_now, A))
        after = op.Add(op.Mul(decay, state), op.Mul(x_now, B_now))
        y_now = op.MatMul(C_now, after)
        return after, y_now

    last, y = op.Scan(
        start,
        step,
        x,
        B,
        C,
        body=advance,
        num_scan_inputs=4,
        scan_input_directions=[1, 1, 1, 1],
        scan_output_directions=[1],
    )
    return y, last


def recurrence(step: FLOAT, x: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT, reverse: bool = False) -> tuple[FLOAT, FLOAT]:
    """Arguments and results of :func:`mtrkit.scan.standard.recurrence_in_chunks`.

    ONNX has an operator of its own for loops over a sequence: six nodes, for any number of tokens.
    """
    found: tuple[FLOAT, FLOAT] = (_backward if reverse else _forward)(step, x, A, B, C)
    return found


def softplus(self: FLOAT, beta: float = 1.0, threshold: float = 20.0) -> FLOAT:
    """``max(x, 0) + log1p(exp(-|x|))``: runtimes compute their ``Softplus`` number by number, ten times as slowly.

    log1p(y) is log(1 + y) · y / ((1 + y) − 1), in which what is rounded away in 1 + y cancels. ``threshold`` changes
    nothing: above it the second term is below the rounding of the first.
    """
    del threshold
    x: Any = self if beta == 1.0 else op.Mul(self, op.Constant(value_float=beta))
    one, tiny = op.Constant(value_float=1.0), op.Constant(value_float=1e-30)
    small = op.Exp(op.Neg(op.Abs(x)))
    whole = op.Add(small, one)
    # The greater, not the sum: optimisers take so small an addend for nothing, and 0 / 0 is left.
    lost = op.Div(op.Max(small, tiny), op.Max(op.Sub(whole, one), tiny))
    found: Any = op.Add(op.Relu(x), op.Mul(op.Log(whole), lost))
    return found if beta == 1.0 else op.Div(found, op.Constant(value_float=beta))


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


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that ``torch.onnx.export`` takes."""
    return {
        torch.ops.mtrkit.recurrence.default: recurrence,
        torch.ops.aten.softplus.default: softplus,
        torch.ops.aten.sort.stable: stable_sort,
    }
