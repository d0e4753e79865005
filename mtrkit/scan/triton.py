"""Backend ``triton``: mtrkit's own kernels for GPUs, which need Triton and no compiler of CUDA.

``auto`` takes it on GPUs only. In Triton's interpreter it runs on a CPU too, slowly, for those who ask for it.
"""

from torch import Tensor

from mtrkit.scan import operators
from mtrkit.scan.backend import Backend
from mtrkit.scan.kernels import TRITON
from mtrkit.triton.availability import DEVICES, refusal, status
from mtrkit.types import Scan


def _scan(scan: Scan) -> tuple[Tensor, Tensor]:
    return operators.selective_scan(scan, TRITON)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return operators.causal_conv1d(x, weight, bias, silu, reverse, TRITON)


def _softplus(delta: Tensor, bias: Tensor | None) -> Tensor:
    return operators.delta_softplus(delta, bias, TRITON)


BACKEND = Backend(TRITON, status, refusal, _scan, _conv, _softplus, steps_through_runs=True, chosen_on=DEVICES)
