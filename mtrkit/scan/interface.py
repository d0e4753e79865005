"""The public selective scan, and the short depthwise convolution in front of it."""

from typing import Literal, overload

from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.scan.checks import check_conv, check_scan
from mtrkit.scan.dispatch import choose_backend
from mtrkit.types import Scan


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
    backend: str = ...,
    *,
    reverse: bool = ...,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
    backend: str = ...,
    reverse: bool = ...,
) -> tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
    *,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective state-space recurrence of Mamba, on any device, with gradients.

    Per channel, with state h of size N starting at 0: ``h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t`` and
    ``y_t = C_t · h_t + D u_t``, then ``y_t · SiLU(z_t)``. Arguments and meaning are those of mamba_ssm's
    ``selective_scan_fn``, so that one can stand in for the other.

    Args:
        u: Input (B, E, L), L >= 1: float32, bfloat16, float16 or float64, any strides. On CPUs the fastest
            order in memory is (B, L, E) seen through ``transpose(1, 2)``; nothing is copied then.
        delta: Step size Δ (B, E, L), before bias and softplus.
        A: Decay rates (E, N), real, usually negative.
        B: Input weights (B, N, L), or (B, G, N, L) with E divisible by G, or constant (E, N).
        C: Output weights, like B.
        D: Skip weights (E,). Default: no skip.
        z: Gate (B, E, L). Default: no gate.
        delta_bias: (E,), added to ``delta``. Default: none.
        delta_softplus: Whether Δ is softplus(delta + delta_bias), which is the identity above 20.
        return_last_state: Whether the state after the token visited last is returned too.
        backend: A name in :func:`mtrkit.scan_backends`, or ``"auto"`` for the best that can run. Under
            ``torch.func`` and forward-mode differentiation ``"auto"`` takes ``"reference"``.
        reverse: Whether the scan runs from the last token to the first. The output stays aligned with the
            tokens.

    Returns:
        y (B, E, L) in the dtype of ``u``, or ``(y, state)`` with state (B, E, N) in float32 (float64 for
        float64 inputs). The state is float32 inside. Gradients flow through the state too, except in
        ``mamba_ssm``.

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
        UnknownNameError: No such backend.
        BackendError: The backend that was asked for cannot run here; the message gives its reason.

    Source: Gu and Dao, "Mamba" (arXiv:2312.00752), algorithm 2.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias)
    B, C = _same_groups(_grouped(B, u), _grouped(C, u))
    run = choose_backend(backend, u).scan
    y, last = run(Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse))
    return (y, last) if return_last_state else y


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution along the tokens in which no token sees a later one.

    Args:
        x: (B, E, L), any strides, L >= 1.
        weight: (E, K) or (E, 1, K); the last column belongs to the token itself.
        bias: (E,). Default: none.
        silu: Whether SiLU is applied to the result.
        reverse: Whether the tokens are visited from the last to the first: token t then sees t … t + K - 1.
            Equal to flipping the input and the result along L.
        backend: A name in :func:`mtrkit.scan_backends`, or ``"auto"`` for the best that can run.

    Returns:
        (B, E, L) in the dtype of ``x``; channels are neighbours in memory if they are in ``x``.

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
        BackendError: The backend that was asked for cannot run here.

    Source: Gu and Dao, "Mamba" (arXiv:2312.00752), figure 3.
    """
    check_conv(x, weight, bias)
    taps = weight.squeeze(1) if weight.dim() == 3 else weight
    return choose_backend(backend, x).conv(x, taps, bias, silu, reverse)


def delta_softplus(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus(delta + bias) for Δ (B, E, L) and its bias (E,), by the backend that would scan it."""
    return choose_backend("auto", delta).softplus(delta, bias)


def _grouped(x: Tensor, u: Tensor) -> Tensor:
    """B or C as (B, G, N, L); one that does not depend on the input becomes a group per channel, repeated."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    batch, channels, length = u.shape
    return x[None, :, :, None].expand(batch, channels, x.shape[1], length)


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    if B.shape[1] == C.shape[1]:
        return B, C
    groups = max(B.shape[1], C.shape[1])
    if groups % min(B.shape[1], C.shape[1]) != 0:
        raise InputError(f"B has {B.shape[1]} groups and C has {C.shape[1]}; one must divide the other")
    repeated = (x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))
    return next(repeated), next(repeated)
