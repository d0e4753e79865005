"""The recurrence and the convolution step by step: readable, slow, differentiable, the truth for the tests.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), equation 2 with zero-order hold for A and Euler's rule for B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan.backend import Backend


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Scan token by token, in float64 for float64 inputs and in float32 otherwise.

    Args:
        u: (B, E, L).
        delta: (B, E, L).
        A: (E, N).
        B: (B, G, N, L), E divisible by G.
        C: (B, G, N, L).
        D: (E,) or None.
        z: (B, E, L) or None.
        delta_bias: (E,) or None.
        delta_softplus: Whether Δ = softplus(delta + delta_bias).
        reverse: Whether the scan starts at the last token.

    Returns:
        The output (B, E, L) in the dtype of ``u`` and the state (B, E, N) after the last visited token.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
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


def _status() -> tuple[bool, str]:
    return True, "a plain loop over tokens, for tests"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


BACKEND = Backend("reference", _status, _refuses, selective_scan_reference, causal_conv1d_reference)
