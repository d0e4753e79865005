"""The public selective scan."""

from typing import Literal, overload

from torch import Tensor

from mtrkit.scan.dispatch import scan_op


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
        return_last_state: Whether the state after the last token is returned too.
        backend: A name in :func:`mtrkit.scan_backends`, or ``"auto"`` for the best that can run.

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
    y, last = scan_op(u, delta, A, B, C, D, z, delta_bias, delta_softplus, backend=backend)
    return (y, last) if return_last_state else y
