"""Calls into the compiled library: allocates results, runs a job, adds up partial sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.native import library as lib
from mtrkit.native.jobs import (
    CONV,
    GIVEN_DELTA,
    NO_FACTORS,
    NO_VIEW,
    SCAN,
    SOFTPLUS,
    SUM,
    address,
    as_float,
    dense,
    rows_of,
    view_of,
)
from mtrkit.native.layout import empty_as

ScanGrads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan on the CPU in float32: output (B, E, L), last state (B, E, N) and, if ``save``, checkpoints."""
    batch, channels, length = u.shape
    states = A.shape[1]
    dtype, out = u.dtype, empty_as(u, torch.float32)
    u, delta, z = as_float(u), as_float(delta), z if z is None else as_float(z)
    A, D, bias = dense(A), D if D is None else dense(D), bias if bias is None else dense(bias)
    B, C = _state_last(B), _state_last(C)
    last = u.new_empty((batch, states, channels))
    checkpoints = u.new_empty(checkpoint_shape(batch, channels, length, states, B.shape[1], save))
    job = SCAN.pack(
        *(batch, channels, length, states, B.shape[1], softplus, reverse, *GIVEN_DELTA),
        *(*view_of(u), *view_of(delta), *view_of(z), *view_of(out)),
        *(NO_VIEW * 6),
        *(*rows_of(B), *rows_of(C), *NO_FACTORS),
        *(
            address(A),
            address(D),
            address(bias),
            address(last),
            0,
            address(checkpoints) if save else 0,
            0,
            0,
        ),
    )
    lib.library().run((lib.SCAN_FORWARD, job))
    return _back(out, dtype), last.transpose(1, 2), checkpoints


def scan_backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> ScanGrads:
    """Gradients of u, delta, A, B, C, D, z, bias in float32; an absent input has an empty gradient."""
    batch, channels, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    du, ddelta = empty_as(u, torch.float32), empty_as(delta, torch.float32)
    dz = u.new_empty(0) if z is None else empty_as(z, torch.float32)
    grad_y, u, delta, z = as_float(grad_y), as_float(u), as_float(delta), z if z is None else as_float(z)
    A, D, bias = dense(A), D if D is None else dense(D), bias if bias is None else dense(bias)
    B, C = _state_last(B), _state_last(C)
    dlast = None if grad_last is None else grad_last.float().transpose(1, 2).contiguous()
    blocks = _blocks(channels, groups)
    teams = -(-blocks // lib.TEAM_BLOCKS)
    sums = u.new_empty((batch, groups, blocks, states + 2, lib.BLOCK))
    dBC = u.new_empty((batch, groups, teams, length, 2 * states))
    job = SCAN.pack(
        *(batch, channels, length, states, groups, softplus, reverse, *GIVEN_DELTA),
        *(*view_of(u), *view_of(delta), *view_of(z), *NO_VIEW),
        *(*view_of(grad_y), *view_of(du), *view_of(ddelta), *(NO_VIEW if z is None else view_of(dz)), *(NO_VIEW * 2)),
        *(*rows_of(B), *rows_of(C), *NO_FACTORS),
        *(address(A), address(D), address(bias), 0, address(dlast)),
        *(address(checkpoints), address(sums), address(dBC)),
    )
    lib.library().run((lib.SCAN_BACKWARD, job))
    per_channel = _per_channel(_sum(sums, 0), channels, groups)
    dB, dC = _sum(dBC, 2).transpose(2, 3).split(states, dim=2)
    none = u.new_empty(0)
    dD, dbias = (none if t is None else per_channel[:, i] for t, i in ((D, states), (bias, states + 1)))
    return du, ddelta, per_channel[:, :states], dB, dC, dD, dz, dbias


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Causal depthwise convolution of x (B, E, L) with weight (E, K)."""
    batch, channels, length = x.shape
    dtype, out = x.dtype, empty_as(x, torch.float32)
    x, weight, bias = as_float(x), dense(weight), bias if bias is None else dense(bias)
    job = CONV.pack(
        *(batch, channels, length, weight.shape[1], silu, reverse),
        *(*view_of(x), *view_of(out), *NO_VIEW, *NO_VIEW),
        *(address(weight), address(bias), 0),
    )
    lib.library().run((lib.CONV_FORWARD, job))
    return _back(out, dtype)


def conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight (E, K) and bias (empty without one) in float32."""
    batch, channels, length = x.shape
    width, blocks = weight.shape[1], _blocks(channels, 1)
    dx = empty_as(x, torch.float32)
    grad_y, x, weight = as_float(grad_y), as_float(x), dense(weight)
    bias = bias if bias is None else dense(bias)
    sums = x.new_empty((batch, 1, blocks, width + 1, lib.BLOCK))
    job = CONV.pack(
        *(batch, channels, length, width, silu, reverse),
        *(*view_of(x), *NO_VIEW, *view_of(grad_y), *view_of(dx)),
        *(address(weight), address(bias), address(sums)),
    )
    lib.library().run((lib.CONV_BACKWARD, job))
    per_channel = _per_channel(_sum(sums, 0), channels, 1)
    return dx, per_channel[:, :width], x.new_empty(0) if bias is None else per_channel[:, width]


def softplus_forward(delta: Tensor, bias: Tensor) -> Tensor:
    """softplus(delta + bias) for delta (B, E, L) and bias (E,)."""
    dtype, out = delta.dtype, empty_as(delta, torch.float32)
    delta, bias = as_float(delta), dense(as_float(bias))
    job = SOFTPLUS.pack(*delta.shape, *view_of(delta), *view_of(out), address(bias))
    lib.library().run((lib.SOFTPLUS, job))
    return out.to(dtype)


def checkpoint_shape(batch: int, channels: int, length: int, states: int, groups: int, save: bool) -> Sequence[int]:
    """Shape of the states kept for the backward pass, one set per tile of time steps."""
    if not save:
        return (0,)
    return (batch, groups * _blocks(channels, groups), -(-length // lib.TILE), states, lib.BLOCK)


def _blocks(channels: int, groups: int) -> int:
    return -(-(channels // groups) // lib.BLOCK)


def _per_channel(sums: Tensor, channels: int, groups: int) -> Tensor:
    """(groups, blocks, K, BLOCK) to (E, K), without the absent channels of incomplete blocks."""
    per_group = sums.transpose(2, 3).reshape(groups, -1, sums.shape[2])[:, : channels // groups]
    return per_group.reshape(channels, sums.shape[2])


def _sum(parts: Tensor, dim: int) -> Tensor:
    """Sum over one dimension in index order, whatever the number of threads."""
    if parts.shape[dim] == 1:
        return parts.squeeze(dim)
    out = parts.new_empty(parts.shape[:dim] + parts.shape[dim + 1 :])
    outer = parts.shape[:dim].numel()
    if out.numel():
        inner = out.numel() // outer
        job = SUM.pack(outer, parts.shape[dim], inner, parts.data_ptr(), out.data_ptr())
        lib.library().run((lib.SUM, job))
    return out


def _back(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype is torch.float32 else x.to(dtype)


def _state_last(x: Tensor) -> Tensor:
    """(B, G, N, L) in float32 whose states lie next to each other."""
    x = as_float(x)
    return x if x.stride(2) == 1 else x.transpose(2, 3).contiguous().transpose(2, 3)
