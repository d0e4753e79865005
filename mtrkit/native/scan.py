"""Scan, convolution and softplus by the compiled library: allocates results, runs a job, adds up partial sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.native import library as lib
from mtrkit.native.jobs import CONV, NO_VIEW, SOFTPLUS, SUM, address, as_float, dense, pack_scan, positions, view_of
from mtrkit.native.layout import empty_as, expect, expect_scan
from mtrkit.types import Scan

ScanGrads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def scan_forward(scan: Scan, save: bool, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Scan on the CPU in float32: output (B, E, L), last state (B, E, N) and, if ``save``, checkpoints.

    ``lengths`` (B, L) int64 says how many positions each token lasts, over which its output is the mean.
    """
    out, ready, lengths = empty_as(scan.u, torch.float32), _ready(scan), lengths_of(scan.u, lengths)
    batch, channels, length = scan.u.shape
    states, groups = scan.A.shape[1], scan.B.shape[1]
    last = out.new_empty((batch, states, channels))
    checkpoints = out.new_empty(checkpoint_shape(batch, channels, length, states, groups, save))
    job = pack_scan(
        _sizes(ready),
        {"u": ready.u, "delta": ready.delta, "z": ready.z, "y": out},
        {"B": ready.B, "C": ready.C},
        {**_parameters(ready, lengths), "last": last, "checkpoints": checkpoints if save else None},
    )
    lib.library().run((lib.SCAN_FORWARD, job))
    return _back(out, scan.u.dtype), last.transpose(1, 2), checkpoints


def scan_backward(
    grad_y: Tensor, grad_last: Tensor | None, scan: Scan, checkpoints: Tensor, lengths: Tensor | None = None
) -> ScanGrads:
    """Gradients of u, delta, A, B, C, D, z, bias in float32; an absent input has an empty gradient."""
    ready, lengths = _ready(scan), lengths_of(scan.u, lengths)
    batch, channels, length = scan.u.shape
    states, groups = scan.A.shape[1], scan.B.shape[1]
    du, ddelta, none = empty_as(scan.u, torch.float32), empty_as(scan.delta, torch.float32), grad_y.new_empty(0)
    dz = none if scan.z is None else empty_as(scan.z, torch.float32)
    if grad_last is not None:
        expect("grad_last", grad_last, (batch, channels, states))
    dlast = None if grad_last is None else dense(grad_last.transpose(1, 2))
    blocks = _blocks(channels, groups)
    sums = du.new_empty((batch, groups, blocks, states + 2, lib.BLOCK))
    dBC = du.new_empty((batch, groups, -(-blocks // lib.TEAM_BLOCKS), length, 2 * states))
    expect("grad_y", grad_y, scan.u.shape)
    expect("checkpoints", checkpoints, checkpoint_shape(batch, channels, length, states, groups, True))
    grads = {"dy": as_float(grad_y), "du": du, "ddelta": ddelta, "dz": None if scan.z is None else dz}
    job = pack_scan(
        _sizes(ready),
        {"u": ready.u, "delta": ready.delta, "z": ready.z, **grads},
        {"B": ready.B, "C": ready.C},
        {**_parameters(ready, lengths), "dlast": dlast, "checkpoints": dense(checkpoints), "sums": sums, "dBC": dBC},
    )
    lib.library().run((lib.SCAN_BACKWARD, job))
    per_channel = _per_channel(_sum(sums, 0), channels, groups)
    dB, dC = _sum(dBC, 2).transpose(2, 3).split(states, dim=2)
    dD, dbias = (none if t is None else per_channel[:, states + i] for i, t in enumerate((scan.D, scan.bias)))
    return du, ddelta, per_channel[:, :states], dB, dC, dD, dz, dbias


def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, lengths: Tensor | None = None
) -> Tensor:
    """Causal depthwise convolution of x (B, E, L) with weight (E, K); ``lengths`` as in :func:`scan_forward`."""
    dtype, out, lengths = x.dtype, empty_as(x, torch.float32), lengths_of(x, lengths)
    x, weight, bias = as_float(x), dense(weight), _dense(bias)
    job = CONV.pack(
        *_conv_sizes(x, weight, bias, silu, reverse),
        *(*view_of(x), *view_of(out), *NO_VIEW, *NO_VIEW),
        *(address(weight), address(bias), 0, address(lengths)),
    )
    lib.library().run((lib.CONV_FORWARD, job))
    return _back(out, dtype)


def conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight (E, K) and bias (empty without one) in float32."""
    channels, width = weight.shape
    dx, lengths = empty_as(x, torch.float32), lengths_of(x, lengths)
    expect("grad_y", grad_y, x.shape)
    grad_y, x, weight, bias = as_float(grad_y), as_float(x), dense(weight), _dense(bias)
    sums = x.new_empty((x.shape[0], 1, _blocks(channels, 1), width + 1, lib.BLOCK))
    job = CONV.pack(
        *_conv_sizes(x, weight, bias, silu, reverse),
        *(*view_of(x), *NO_VIEW, *view_of(grad_y), *view_of(dx)),
        *(address(weight), address(bias), address(sums), address(lengths)),
    )
    lib.library().run((lib.CONV_BACKWARD, job))
    per_channel = _per_channel(_sum(sums, 0), channels, 1)
    return dx, per_channel[:, :width], x.new_empty(0) if bias is None else per_channel[:, width]


def softplus_forward(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus(delta + bias) for delta (B, E, L) and bias (E,)."""
    dtype, out = delta.dtype, empty_as(delta, torch.float32)
    if bias is not None:
        expect("bias", bias, delta.shape[1:2])
    delta, bias = as_float(delta), _dense(bias)
    job = SOFTPLUS.pack(*delta.shape, *view_of(delta), *view_of(out), address(bias))
    lib.library().run((lib.SOFTPLUS, job))
    return _back(out, dtype)


def checkpoint_shape(batch: int, channels: int, length: int, states: int, groups: int, save: bool) -> Sequence[int]:
    """Shape of the states kept for the backward pass, one set per tile of time steps."""
    if not save:
        return (0,)
    return (batch, groups * _blocks(channels, groups), -(-length // lib.TILE), states, lib.BLOCK)


def _ready(scan: Scan) -> Scan:
    """In float32 and in an order of memory that C reads; every size is checked, as C cannot."""
    expect_scan(scan)
    return scan._replace(
        u=as_float(scan.u),
        delta=as_float(scan.delta),
        A=dense(scan.A),
        B=_state_last(scan.B),
        C=_state_last(scan.C),
        D=_dense(scan.D),
        z=None if scan.z is None else as_float(scan.z),
        bias=_dense(scan.bias),
    )


def _sizes(scan: Scan) -> dict[str, int]:
    batch, channels, length = scan.u.shape
    sizes = {"batch": batch, "channels": channels, "length": length, "states": scan.A.shape[1]}
    return sizes | {"groups": scan.B.shape[1], "softplus": scan.softplus, "reverse": scan.reverse}


def _parameters(scan: Scan, lengths: Tensor | None) -> dict[str, Tensor | None]:
    return {"A": scan.A, "D": scan.D, "bias": scan.bias, "lengths": lengths}


def lengths_of(x: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(B, L) as C reads it, for tokens (B, E, L)."""
    if lengths is None:
        return None
    expect("lengths", lengths, (x.shape[0], x.shape[2]))
    return positions(lengths)


def _conv_sizes(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> tuple[int, ...]:
    batch, channels, length = x.shape
    expect("weight", weight, (channels, weight.shape[-1]))
    if bias is not None:
        expect("bias", bias, (channels,))
    return (batch, channels, length, weight.shape[1], silu, reverse)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else dense(x)


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
        job = SUM.pack(outer, parts.shape[dim], inner, 1.0, address(parts), address(out))
        lib.library().run((lib.SUM, job))
    return out


def _back(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype is torch.float32 else x.to(dtype)


def _state_last(x: Tensor) -> Tensor:
    """(B, G, N, L) in float32 whose states lie next to each other."""
    x = as_float(x)
    return x if x.stride(2) == 1 else x.transpose(2, 3).contiguous().transpose(2, 3)
