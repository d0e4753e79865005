"""The sum of two streams and its norm by one kernel."""

import torch
from torch import Tensor

from mtrkit.native.layout import expect
from mtrkit.triton.kernels.norm import add_rms_norm as kernel
from mtrkit.triton.launch import check_kind, launch, power_of_two

NUMBERS = 1024  # of a program's tile: as many rows as have room


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last axis of ``residual + x`` (..., D), times ``weight`` (D,), and that sum.

    The norm is in the dtype of x, the sum in the wider one of the two.
    """
    check_kind(x)
    check_kind(residual)
    expect("residual", residual, x.shape)
    expect("weight", weight, x.shape[-1:])
    shape, width = x.shape, x.shape[-1]
    x, residual = (part.resolve_neg().reshape(-1, width) for part in (x, residual))
    x, residual = (part if part.stride(1) == 1 else part.contiguous() for part in (x, residual))
    dtype = torch.promote_types(x.dtype, residual.dtype)
    normed, total = x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype)
    columns = power_of_two(width)
    rows = max(1, NUMBERS // columns)
    arguments = (x, residual, weight.contiguous(), normed, total, len(x), width, eps, x.stride(0), residual.stride(0))
    launch(kernel, -(-len(x) // rows), x, arguments, warps=4, BLOCK_R=rows, BLOCK_D=columns)
    return normed.view(shape), total.view(shape)
