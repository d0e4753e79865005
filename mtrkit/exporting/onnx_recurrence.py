"""The recurrence as ONNX's own operator for loops over a sequence, ``Scan``: six nodes for any number of tokens."""

from typing import Any

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from onnxscript.values import Opset

_DOMAIN = Opset("mtrkit", 1)


@script(_DOMAIN, default_opset=op)
def recurrence(step: FLOAT, x: FLOAT, A: FLOAT, B: FLOAT, C: FLOAT) -> Any:
    """Arguments and results of :func:`mtrkit.scan.standard.recurrence_in_chunks`; its loop runs token by token."""
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
