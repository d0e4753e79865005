"""What the kernels compute number by number, in float32."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load(pointers, mask):
    """Numbers of any precision as float32; zeros where there are none."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), relatively exact down to the smallest numbers.

    Triton has no log1p. log(w) · e / (w − 1) with w = 1 + e is one: the rounding of w is in both factors and cancels.
    """
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    rounded = tl.where(w == 1.0, 1.0, w - 1.0)
    return tl.maximum(x, 0.0) + tl.where(w == 1.0, e, tl.log(w) * (e / rounded))


@triton.jit
def silu_slope(x):
    """The derivative of x · sigmoid(x)."""
    share = sigmoid(x)
    return share * (1.0 + x * (1.0 - share))
