"""The causal convolution and its gradients by Triton's kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.native.layout import empty_as, expect
from mtrkit.triton.kernels import conv as kernels
from mtrkit.triton.launch import check_kind, dense, launch, lengths_of, power_of_two

TOKENS, CHANNELS = 32, 64  # of a tile
BACKWARD_TOKENS, BACKWARD_CHANNELS = 16, 32


def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None = None
) -> Tensor:
    """Causal depthwise convolution of x (B, E, L) with weight (E, K).

    ``lengths`` (B, L) int64 says how many positions each token lasts, over which its output is the mean.
    """
    check_kind(x)
    out = empty_as(x)
    launch_forward(x, out[None], ((weight, bias),), lengths, silu, reverse)
    return out


def launch_forward(
    x: Tensor,
    y: Tensor,
    ways: Sequence[tuple[Tensor, Tensor | None]],
    lengths: Tensor | None,
    silu: bool = True,
    reverse: bool = False,
) -> None:
    """Write ``y`` (W, B, E, L) for one direction or both, each with a weight (E, K) and bias; the second goes back."""
    batch, channels, length = x.shape
    width = ways[0][0].shape[1]
    for weight, bias in ways:
        _check(x, weight, bias, width)
    (weight, bias), (other_weight, other_bias) = ways[0], ways[-1]
    if (bias is None) is not (other_bias is None):
        bias, other_bias = (x.new_zeros(channels) if part is None else part for part in (bias, other_bias))
    block = min(CHANNELS, power_of_two(channels))
    tiles, blocks = -(-length // TOKENS), -(-channels // block)
    arguments = (
        *(x, dense(weight), dense(bias), lengths_of(lengths, x), y, dense(other_weight), dense(other_bias)),
        *(batch, length, channels, int(reverse), *x.stride(), *y.stride()),
    )
    sizes = {"WIDTH": width, "WAYS": len(ways), "BLOCK_T": TOKENS, "BLOCK_E": block}
    launch(kernels.conv_forward, len(ways) * batch * tiles * blocks, x, arguments, warps=4, SILU=silu, **sizes)


def conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight (E, K) and bias (empty without one)."""
    check_kind(x)
    batch, channels, length = x.shape
    width = weight.shape[1]
    _check(x, weight, bias, width)
    expect("grad_y", grad_y, x.shape)
    block = min(BACKWARD_CHANNELS, power_of_two(channels))
    tiles, blocks = -(-length // BACKWARD_TOKENS), -(-channels // block)
    dx = empty_as(x)
    sums = x.new_empty((batch, tiles, width + 1, channels), dtype=torch.float32)
    arguments = (
        *(grad_y, x, dense(weight), dense(bias), lengths_of(lengths, x), dx, sums),
        *(length, channels, int(reverse), *grad_y.stride(), *x.stride(), *dx.stride()),
    )
    sizes = {"WIDTH": width, "BLOCK_T": BACKWARD_TOKENS, "BLOCK_E": block}
    launch(kernels.conv_backward, batch * tiles * blocks, x, arguments, warps=4, SILU=silu, **sizes)
    per_channel = sums.sum((0, 1))
    return dx, per_channel[:width].t(), x.new_empty(0) if bias is None else per_channel[width]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, width: int) -> None:
    expect("weight", weight, (x.shape[1], width))
    if bias is not None:
        expect("bias", bias, x.shape[1:2])
