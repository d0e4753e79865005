"""``mamba_ssm.ops.selective_scan_interface`` on our scan: its functions under their own names and arguments.

Gradients come from torch autograd through our operators. The fused functions are what they compute, step by step:
convolution, projections, scan, gate, projection.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.scan import causal_conv1d, selective_scan

Maybe = Tensor | None


class Norms(NamedTuple):
    """Weights of root-mean-square norms in front of the scan, as in Falcon-Mamba."""

    delta: Maybe = None
    B: Maybe = None
    C: Maybe = None
    eps: float = 1e-6


NO_NORMS = Norms()


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Maybe = None,
    z: Maybe = None,
    delta_bias: Maybe = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`mtrkit.selective_scan`, by the best backend that can run."""
    return _scan("auto", u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Maybe = None,
    z: Maybe = None,
    delta_bias: Maybe = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`mtrkit.selective_scan`, by the plain loop over tokens."""
    return _scan("reference", u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Maybe,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Maybe,
    A: Tensor,
    B: Maybe = None,
    C: Maybe = None,
    D: Maybe = None,
    delta_bias: Maybe = None,
    B_proj_bias: Maybe = None,
    C_proj_bias: Maybe = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Maybe = None,
    c_rms_weight: Maybe = None,
    dt_rms_weight: Maybe = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """A mixer from behind its input projection to the end.

    Args:
        xz: (B, 2E, L): the inputs of the convolution, then those of the gate.
        conv1d_weight: (E, 1, K).
        conv1d_bias: (E,) or ``None``.
        x_proj_weight: (R + 2N, E), rows in the order Δ, B, C.
        delta_proj_weight: (E, R).
        out_proj_weight: (D, E).
        out_proj_bias: (D,) or ``None``.
        A: (E, N), as in :func:`mtrkit.selective_scan`.
        B: As there. Default: from the input.
        C: As there. Default: from the input.
        D: (E,). Default: no skip.
        delta_bias: (E,). Default: none.
        B_proj_bias: (N,), added to the B that come from the input. Default: none.
        C_proj_bias: (N,), the same for C.
        delta_softplus: Whether softplus is applied to Δ.
        checkpoint_lvl: Has no effect: what is kept for the backward pass is mtrkit's affair.
        b_rms_weight: (N,), of a root-mean-square norm of the B that come from the input. Default: no norm.
        c_rms_weight: (N,), the same for C.
        dt_rms_weight: (R,), the same for Δ before its projection.
        b_c_dt_rms_eps: Of those norms.

    Returns:
        (B, L, D).

    Raises:
        InputError: Shapes, dtypes or devices do not fit together.
    """
    del checkpoint_lvl
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    norms = Norms(dt_rms_weight, b_rms_weight, c_rms_weight, b_c_dt_rms_eps)
    biases = (delta_bias, B_proj_bias, C_proj_bias)
    y = _inner(xz, *weights, A, B, C, D, *biases, delta_softplus, norms=norms)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Maybe,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Maybe = None,
    C: Maybe = None,
    D: Maybe = None,
    delta_bias: Maybe = None,
    B_proj_bias: Maybe = None,
    C_proj_bias: Maybe = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """:func:`mamba_inner_fn` without the last projection, as Vim's and VideoMamba's forks have it: (B, E, L)."""
    del checkpoint_lvl
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    return _inner(xz, *weights, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Maybe,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Maybe,
    A: Tensor,
    A_b: Tensor,
    B: Maybe = None,
    C: Maybe = None,
    D: Maybe = None,
    delta_bias: Maybe = None,
    B_proj_bias: Maybe = None,
    C_proj_bias: Maybe = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn` with a second scan from the last token to the first, by ``A_b``; the forks have it."""
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    y = _inner(xz, *weights, A, B, C, D, delta_bias, B_proj_bias, C_proj_bias, delta_softplus, A_b)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Maybe,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Maybe,
    A: Tensor,
    B: Maybe = None,
    C: Maybe = None,
    D: Maybe = None,
    delta_bias: Maybe = None,
    B_proj_bias: Maybe = None,
    C_proj_bias: Maybe = None,
    delta_softplus: bool = True,
) -> Tensor:
    """:func:`mamba_inner_fn` by the plain loops."""
    weights = (conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight)
    biases = (delta_bias, B_proj_bias, C_proj_bias)
    y = _inner(xz, *weights, A, B, C, D, *biases, delta_softplus, backend="reference")
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def _scan(backend: str, *arguments: object) -> Tensor | tuple[Tensor, Tensor]:
    *inputs, return_last_state = arguments
    y, last = selective_scan(*inputs, return_last_state=True, backend=backend)  # type: ignore[call-overload]
    return (y, last) if return_last_state else y


def _inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Maybe,
    x_proj: Tensor,
    delta_proj: Tensor,
    A: Tensor,
    B: Maybe,
    C: Maybe,
    D: Maybe,
    delta_bias: Maybe,
    B_bias: Maybe,
    C_bias: Maybe,
    softplus: bool,
    A_back: Maybe = None,
    backend: str = "auto",
    norms: Norms = NO_NORMS,
) -> Tensor:
    """A mixer between its outer projections, (B, E, L); with ``A_back`` a scan from the last token is added."""
    x, z = _halves(xz)
    u = causal_conv1d(x, conv_weight, conv_bias, backend=backend)
    delta, B, C = _project(u, x_proj, delta_proj, A, B, C, B_bias, C_bias, norms)
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, softplus, backend=backend)
    if A_back is None:
        return y
    return y + selective_scan(u, delta, A_back, B, C, D, z, delta_bias, softplus, backend=backend, reverse=True)


def _halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    if xz.dim() != 3 or xz.shape[1] % 2:
        raise InputError(f"xz has shape {tuple(xz.shape)}; expected (batch, twice the channels, tokens)")
    x, z = xz.chunk(2, dim=1)
    return x, z


def _project(
    u: Tensor,
    x_proj: Tensor,
    delta_proj: Tensor,
    A: Tensor,
    B: Maybe,
    C: Maybe,
    B_bias: Maybe,
    C_bias: Maybe,
    norms: Norms,
) -> tuple[Tensor, Tensor, Tensor]:
    """Δ before its bias (B, E, L), and B and C (B, N, L) where they are not given."""
    rank, states, rows = delta_proj.shape[1], A.shape[1], x_proj.shape[0]
    wanted = rank + states * ((B is None) + (C is None))
    if rows not in (wanted, rank + 2 * states):
        raise InputError(f"x_proj_weight has {rows} rows; expected {wanted}: {rank} of Δ, {states} of each of B and C")
    projected = F.linear(u.transpose(1, 2), x_proj)
    steps, rows_B, rows_C = projected[..., :rank], projected[..., rank : rank + states], projected[..., -states:]
    delta = F.linear(_normed(steps, norms.delta, norms.eps), delta_proj).transpose(1, 2)
    found_B = B if B is not None else _rows(rows_B, B_bias, norms.B, norms.eps)
    return delta, found_B, C if C is not None else _rows(rows_C, C_bias, norms.C, norms.eps)


def _rows(computed: Tensor, bias: Maybe, norm: Maybe, eps: float) -> Tensor:
    biased = computed if bias is None else computed + bias.to(computed.dtype)
    return _normed(biased, norm, eps).transpose(1, 2)


def _normed(values: Tensor, weight: Maybe, eps: float) -> Tensor:
    if weight is None:
        return values
    if weight.shape != values.shape[-1:]:
        raise InputError(f"a norm of {weight.shape[0]} weights came for {values.shape[-1]} numbers of each token")
    return F.rms_norm(values, weight.shape, weight.to(values.dtype), eps)
