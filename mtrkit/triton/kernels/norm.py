"""The sum of two streams and its root-mean-square norm, in one pass."""

import triton
import triton.language as tl

from mtrkit.triton.kernels.pointwise import load


@triton.jit(do_not_specialize=["rows"])
def add_rms_norm(
    x, residual, weight, normed, total, rows, width, eps, x_r, residual_r,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``normed`` and ``total`` (rows, width) for rows of the streams, which may lie apart."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < rows) & (column < width)
    both = load(x + row * x_r + column, inside) + load(residual + row * residual_r + column, inside)
    both = both.to(total.dtype.element_ty).to(tl.float32)  # the norm is that of the sum as it is kept
    scale = tl.rsqrt(tl.sum(both * both, 1) / width + eps)[:, None]
    place = row * width + column
    tl.store(total + place, both, mask=inside)
    tl.store(normed + place, both * scale * load(weight + column, column < width), mask=inside)
