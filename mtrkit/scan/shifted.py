"""The causal convolution's backward pass in plain torch operations, on any device, as sums of shifted products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan.reference import causal_conv1d_reference

conv_forward = causal_conv1d_reference


def conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments and results as :func:`mtrkit.scan.kernels.conv_backward`, on any device, float64 included."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad, x, taps = grad_y.to(dtype), x.to(dtype), weight.to(dtype)
    if silu:
        before = conv_forward(x, taps, None if bias is None else bias.to(dtype), False, reverse)
        grad = torch.ops.aten.silu_backward(grad, before)
    lags = range(weight.shape[1] - 1, -1, -1)  # column k of the weight sees K - 1 - k tokens back
    dx = torch.stack([_shift(grad, lag, not reverse) * taps[:, k, None] for k, lag in enumerate(lags)]).sum(0)
    dweight = torch.stack([(grad * _shift(x, lag, reverse)).sum((0, 2)) for lag in lags], dim=1)
    return dx, dweight, grad.new_empty(0) if bias is None else grad.sum((0, 2))


def _shift(x: Tensor, lag: int, towards_start: bool) -> Tensor:
    """Move tokens by ``lag`` places and fill with zeros; a lag of the whole length or more leaves nothing."""
    length = x.shape[2]
    padded = F.pad(x, (0, lag) if towards_start else (lag, 0))
    return padded[..., lag:] if towards_start else padded[..., :length]
