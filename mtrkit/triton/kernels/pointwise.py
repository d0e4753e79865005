"""What the kernels compute number by number, in float32."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load(pointers, mask):
    """Numbers of any precision as float32; zeros where the mask says so, if there is one."""
    numbers = tl.load(pointers) if mask is None else tl.load(pointers, mask=mask, other=0.0)
    return numbers.to(tl.float32)


@triton.jit
def narrowed(mask, exists):
    """A mask, if there is one, and a condition for all."""
    return exists if mask is None else mask & exists


@triton.jit
def exp(x):
    """By the power of two that GPUs have: ``tl.exp`` spends three instructions more on results below 1e-38."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), relatively exact down to the smallest numbers.

    Triton has no log1p. With e = exp(−|x|) and s = e / (2 + e), which is at most a third, log(1 + e) is 2 artanh(s);
    the first term left out of its series is 1e-8 of the sum.
    """
    e = exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1 / 11 + q * (1 / 13)
    series = 1 / 7 + q * (1 / 9 + q * series)
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * series))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def silu_slope(x):
    """The derivative of x · sigmoid(x)."""
    share = sigmoid(x)
    return share * (1.0 + x * (1.0 - share))
