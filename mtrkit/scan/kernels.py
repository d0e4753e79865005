"""Calls into the compiled library: packs tensors into structs, allocates results, adds up partial sums."""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.scan import library as lib
from mtrkit.scan.layout import empty_as

# The structs of native.c, field by field: sizes, then (address, strides) of each tensor, then plain
# addresses.
_SCAN = struct.Struct("7q32q8q8q")
_CONV = struct.Struct("6q16q3q")
_SUM = struct.Struct("5q")
_SOFTPLUS = struct.Struct("3q8qq")
_NO_VIEW = (0, 0, 0, 0)

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
    u, delta, z = _float(u), _float(delta), z if z is None else _float(z)
    A, D, bias = _dense(A), D if D is None else _dense(D), bias if bias is None else _dense(bias)
    B, C = _state_last(B), _state_last(C)
    last = u.new_empty((batch, states, channels))
    checkpoints = u.new_empty(checkpoint_shape(batch, channels, length, states, B.shape[1], save))
    job = _SCAN.pack(
        *(batch, channels, length, states, B.shape[1], softplus, reverse),
        *(*_view(u), *_view(delta), *_view(z), *_view(out)),
        *(_NO_VIEW * 4),
        *(*_rows(B), *_rows(C)),
        *(
            _address(A),
            _address(D),
            _address(bias),
            _address(last),
            0,
            _address(checkpoints) if save else 0,
            0,
            0,
        ),
    )
    lib.library().run(lib.SCAN_FORWARD, job)
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
    grad_y, u, delta, z = _float(grad_y), _float(u), _float(delta), z if z is None else _float(z)
    A, D, bias = _dense(A), D if D is None else _dense(D), bias if bias is None else _dense(bias)
    B, C = _state_last(B), _state_last(C)
    dlast = None if grad_last is None else grad_last.float().transpose(1, 2).contiguous()
    blocks = _blocks(channels, groups)
    teams = -(-blocks // lib.TEAM_BLOCKS)
    sums = u.new_empty((batch, groups, blocks, states + 2, lib.BLOCK))
    dBC = u.new_empty((batch, groups, teams, length, 2 * states))
    job = _SCAN.pack(
        *(batch, channels, length, states, groups, softplus, reverse),
        *(*_view(u), *_view(delta), *_view(z), *_NO_VIEW),
        *(*_view(grad_y), *_view(du), *_view(ddelta), *(_NO_VIEW if z is None else _view(dz))),
        *(*_rows(B), *_rows(C)),
        *(_address(A), _address(D), _address(bias), 0, _address(dlast)),
        *(_address(checkpoints), _address(sums), _address(dBC)),
    )
    lib.library().run(lib.SCAN_BACKWARD, job)
    per_channel = _per_channel(_sum(sums, 0), channels, groups)
    dB, dC = _sum(dBC, 2).transpose(2, 3).split(states, dim=2)
    none = u.new_empty(0)
    dD, dbias = (none if t is None else per_channel[:, i] for t, i in ((D, states), (bias, states + 1)))
    return du, ddelta, per_channel[:, :states], dB, dC, dD, dz, dbias


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """Causal depthwise convolution of x (B, E, L) with weight (E, K)."""
    batch, channels, length = x.shape
    dtype, out = x.dtype, empty_as(x, torch.float32)
    x, weight, bias = _float(x), _dense(weight), bias if bias is None else _dense(bias)
    job = _CONV.pack(
        *(batch, channels, length, weight.shape[1], silu, reverse),
        *(*_view(x), *_view(out), *_NO_VIEW, *_NO_VIEW),
        *(_address(weight), _address(bias), 0),
    )
    lib.library().run(lib.CONV_FORWARD, job)
    return _back(out, dtype)


def conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight (E, K) and bias (empty without one) in float32."""
    batch, channels, length = x.shape
    width, blocks = weight.shape[1], _blocks(channels, 1)
    dx = empty_as(x, torch.float32)
    grad_y, x, weight = _float(grad_y), _float(x), _dense(weight)
    bias = bias if bias is None else _dense(bias)
    sums = x.new_empty((batch, 1, blocks, width + 1, lib.BLOCK))
    job = _CONV.pack(
        *(batch, channels, length, width, silu, reverse),
        *(*_view(x), *_NO_VIEW, *_view(grad_y), *_view(dx)),
        *(_address(weight), _address(bias), _address(sums)),
    )
    lib.library().run(lib.CONV_BACKWARD, job)
    per_channel = _per_channel(_sum(sums, 0), channels, 1)
    return dx, per_channel[:, :width], x.new_empty(0) if bias is None else per_channel[:, width]


def softplus_forward(delta: Tensor, bias: Tensor) -> Tensor:
    """softplus(delta + bias) for delta (B, E, L) and bias (E,)."""
    dtype, out = delta.dtype, empty_as(delta, torch.float32)
    delta, bias = _float(delta), _dense(_float(bias))
    job = _SOFTPLUS.pack(*delta.shape, *_view(delta), *_view(out), _address(bias))
    lib.library().run(lib.SOFTPLUS, job)
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
        job = _SUM.pack(outer, parts.shape[dim], inner, parts.data_ptr(), out.data_ptr())
        lib.library().run(lib.SUM, job)
    return out


def _float(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def _back(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype is torch.float32 else x.to(dtype)


def _dense(x: Tensor) -> Tensor:
    x = _float(x)
    return x if x.is_contiguous() else x.contiguous()


def _state_last(x: Tensor) -> Tensor:
    """(B, G, N, L) in float32 whose states lie next to each other."""
    x = _float(x)
    return x if x.stride(2) == 1 else x.transpose(2, 3).contiguous().transpose(2, 3)


def _view(x: Tensor | None) -> tuple[int, int, int, int]:
    if x is None:
        return _NO_VIEW
    batch, channel, time = x.stride()
    return (x.data_ptr(), batch, channel, time)


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    batch, group, _, time = x.stride()
    return (x.data_ptr(), batch, group, time)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
