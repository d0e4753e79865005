"""The causal convolution in plain torch operations; its backward pass is a sum of shifted products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.layout import empty_as


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Arguments and result of :func:`mtrkit.native.scan.conv_forward`, on any device, float64 included."""
    return empty_as(x).copy_(_convolve(x, weight, bias, silu, reverse))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    past = weight.shape[1] - 1
    taps = weight.to(dtype).flip(1) if reverse else weight.to(dtype)
    padded = F.pad(x.to(dtype), (0, past) if reverse else (past, 0))
    y = F.conv1d(padded, taps[:, None], None if bias is None else bias.to(dtype), groups=x.shape[1])
    return F.silu(y) if silu else y


def conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`mtrkit.native.scan.conv_backward`, on any device, float64 included."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad, x, taps = grad_y.to(dtype), x.to(dtype), weight.to(dtype)
    if silu:
        before = _convolve(x, taps, bias, False, reverse)
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
