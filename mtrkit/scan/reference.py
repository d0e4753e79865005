"""The recurrence and the convolution step by step: readable, slow, differentiable, the truth for the tests.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), equation 2 with zero-order hold for A and Euler's rule for B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan.backend import Backend
from mtrkit.types import Scan


def selective_scan_reference(scan: Scan) -> tuple[Tensor, Tensor]:
    """Scan token by token, in float64 for float64 inputs and in float32 otherwise.

    Returns:
        The output (B, E, L) in the dtype of u and the state (B, E, N) after the token visited last.
    """
    u, delta, A, B, C, D, z, bias, softplus, reverse = scan
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    if bias is not None:
        delta = delta + bias.to(dtype)[:, None]
    if softplus:
        delta = F.softplus(delta)
    channels, length, groups = u.shape[1], u.shape[2], B.shape[1]
    B, C = (t.repeat_interleave(channels // groups, dim=1) for t in (B, C))  # (B, E, N, L)
    h = x.new_zeros((u.shape[0], channels, A.shape[1]))
    outputs: list[Tensor] = [x.new_empty(0)] * length
    for t in reversed(range(length)) if reverse else range(length):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * x[:, :, t, None]
        outputs[t] = (h * C[..., t]).sum(-1)
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h


def causal_conv1d_reference(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Depthwise convolution in which a token sees itself and the K - 1 tokens visited before it.

    Args:
        x: (B, E, L).
        weight: (E, K); the last column belongs to the token itself.
        bias: (E,) or None.
        silu: Whether SiLU follows.
        reverse: Whether the tokens are visited from the last to the first.

    Returns:
        (B, E, L) in the dtype of ``x``.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    length, width = x.shape[2], weight.shape[1]
    taps = weight.to(dtype).flip(1) if reverse else weight.to(dtype)
    padded = F.pad(x.to(dtype), (0, width - 1) if reverse else (width - 1, 0))
    y = padded.new_zeros(x.shape)
    for k in range(width):
        y = y + taps[:, k, None] * padded[:, :, k : k + length]
    if bias is not None:
        y = y + bias.to(dtype)[:, None]
    return (F.silu(y) if silu else y).to(x.dtype)


def delta_softplus_reference(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus(delta + bias) for delta (B, E, L) and bias (E,) or ``None``, in the dtype of ``delta``."""
    return F.softplus(delta if bias is None else delta + bias[:, None]).to(delta.dtype)


def _status() -> tuple[bool, str]:
    return True, "a plain loop over tokens, for tests"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


BACKEND = Backend(
    "reference",
    _status,
    _refuses,
    selective_scan_reference,
    causal_conv1d_reference,
    delta_softplus_reference,
)
