"""Scan and its gradients by Triton's kernels: allocates results, launches, adds up partial sums."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.native.layout import empty_as, expect, expect_scan
from mtrkit.triton.availability import DEVICES
from mtrkit.triton.kernels import scan as kernels
from mtrkit.triton.launch import check_kind, dense, launch, lengths_of, power_of_two
from mtrkit.types import Scan

SPAN, HELD = 12, 6  # tokens between two states that are kept, and states that the backward pass has in registers
FORWARD_TILE, BACKWARD_TILE = 512, 256  # numbers of a state that a warp holds: N · 32 channels, and half as many
SHORTEST = 128  # tokens of a segment
BUSY = 8  # warps that keep a processor of a GPU busy; with fewer, sequences are cut into segments
NO_VIEW = (0, 0, 0)

ScanGrads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Way(NamedTuple):
    """The parameters of one direction."""

    A: Tensor  # (E, N); or log(−A), if the kernel is told so
    D: Tensor | None  # (E,)
    bias: Tensor | None  # (E,)


def scan_forward(scan: Scan, save: bool, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output like u, last state (B, E, N) and, if ``save``, checkpoints.

    ``lengths`` (B, L) int64 says how many positions each token lasts, over which its output is the mean.
    """
    check_kind(scan.u)
    expect_scan(scan)
    u, z, out = scan.u, scan.z, empty_as(scan.u)
    batch, channels, length = u.shape
    states, groups = scan.A.shape[1], scan.B.shape[1]
    last = u.new_empty((batch, states, channels), dtype=torch.float32)
    shape = checkpoint_shape(batch, channels, length, states, groups, save)
    checkpoints = u.new_empty(shape, dtype=torch.float32)
    one_way = (u[None], scan.delta[None], scan.B[None], scan.C[None], z, out[None])
    launch_forward(
        *one_way,
        ways=(Way(scan.A, scan.D, scan.bias),),
        lengths=lengths,
        last=last,
        checkpoints=checkpoints if save else None,
        softplus=scan.softplus,
        reverse=scan.reverse,
    )
    return out, last.transpose(1, 2), checkpoints


def launch_forward(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    y: Tensor,
    *,
    ways: Sequence[Way],
    lengths: Tensor | None,
    last: Tensor | None = None,
    checkpoints: Tensor | None = None,
    softplus: bool = True,
    reverse: bool = False,
    log_A: bool = False,
) -> None:
    """Write ``y`` (W, B, E, L) for one direction or both: u and delta like it, B and C (W, B, G, N, L), z (B, E, L).

    Of two directions the second goes backward. ``last`` (B, N, E) and ``checkpoints`` are for one direction.
    """
    _, batch, channels, length = u.shape
    groups, states = B.shape[2:4]
    one, other = (Way(way.A.contiguous(), dense(way.D), dense(way.bias)) for way in (ways[0], ways[-1]))
    sizes = _blocks(channels // groups, states, FORWARD_TILE)
    programs = len(ways) * batch * groups * -(-(channels // groups) // sizes["BLOCK_E"])
    segment_length = _segment_length(programs, length, _processors(u.device))
    segments = -(-length // segment_length)
    ends, totals = None, None
    if segments > 1:
        pieces = segments * len(ways) * batch
        ends, totals = (u.new_empty((pieces, *s, channels), dtype=torch.float32) for s in ((states,), ()))
    given = (u, delta, one.A, B, C, one.D, z, one.bias, lengths_of(lengths, u[0]), y)
    numbers = (
        *(ends, totals, batch, length, channels, states, groups, int(reverse), segment_length),
        *(*u.stride(), *delta.stride(), *(NO_VIEW if z is None else z.stride()), *y.stride()),
        *(*B.stride(), *C.stride(), one.A.stride(0), 1),
    )
    constants = {"LOG_A": log_A, "SOFTPLUS": softplus, "SPAN": SPAN, "WAYS": len(ways), **sizes}
    if segments > 1:
        arguments = (*given, None, None, *other, *numbers)
        launch(kernels.scan_forward, programs * segments, u, arguments, warps=1, PASS=kernels.ENDS.value, **constants)
    arguments = (*given, last, checkpoints, *other, *numbers)
    kind = (kernels.JOIN if segments > 1 else kernels.WHOLE).value
    launch(kernels.scan_forward, programs * segments, u, arguments, warps=1, PASS=kind, **constants)


@lru_cache
def _processors(device: torch.device) -> int:
    """Of a GPU; none where there is no need to fill them."""
    if device.type not in DEVICES:
        return 0
    properties = getattr(torch, device.type).get_device_properties(device)
    return int(getattr(properties, "multi_processor_count", 0) or getattr(properties, "max_compute_units", 0))


def _segment_length(programs: int, length: int, processors: int) -> int:
    """All tokens, or so few that segments fill the GPU: two halves, which take two passes each, would gain nothing."""
    segments = min(BUSY * processors // max(programs, 1), length // SHORTEST)
    return length if segments < 3 else length // segments // SPAN * SPAN


def scan_backward(
    grad_y: Tensor, grad_last: Tensor | None, scan: Scan, checkpoints: Tensor, lengths: Tensor | None = None
) -> ScanGrads:
    """Gradients of u, delta, A, B, C, D, z, bias; an absent input has an empty gradient."""
    check_kind(scan.u)
    expect_scan(scan)
    u, delta, A, B, C, D, z, bias = scan.tensors
    A = scan.A.contiguous()
    batch, channels, length = scan.u.shape
    states, groups = scan.A.shape[1], scan.B.shape[1]
    expect("grad_y", grad_y, scan.u.shape)
    expect("checkpoints", checkpoints, checkpoint_shape(batch, channels, length, states, groups, True))
    if grad_last is not None:
        expect("grad_last", grad_last, (batch, channels, states))
        grad_last = grad_last.transpose(1, 2).contiguous()
    sizes = _blocks(channels // groups, states, BACKWARD_TILE)
    blocks = -(-(channels // groups) // sizes["BLOCK_E"])
    none = grad_y.new_empty(0)
    du, ddelta = empty_as(scan.u), empty_as(scan.delta)
    dz = none if scan.z is None else empty_as(scan.z)
    dA = scan.u.new_empty((batch, states, channels), dtype=torch.float32)
    dB, dC = (dA.new_empty((batch, groups, blocks, length, states)) for _ in range(2))
    dD, dbias = (none if x is None else dA.new_empty((batch, channels)) for x in (D, bias))
    arguments = (
        *(grad_y, grad_last, u, delta, A, B, C, dense(D), z, dense(bias), lengths_of(lengths, scan.u), checkpoints),
        *(du, ddelta, dz, dA, dB, dC, dD, dbias, length, channels, states, groups, int(scan.reverse)),
        *(*grad_y.stride(), *scan.u.stride(), *scan.delta.stride(), *(NO_VIEW if z is None else z.stride())),
        *(*du.stride(), *ddelta.stride(), *(NO_VIEW if z is None else dz.stride())),
        *(*scan.B.stride(), *scan.C.stride(), A.stride(0), 1),
    )
    sizes |= {"SPAN": SPAN, "HELD": HELD}
    launch(kernels.scan_backward, batch * groups * blocks, scan.u, arguments, warps=1, SOFTPLUS=scan.softplus, **sizes)
    dB, dC = (x.sum(2).transpose(2, 3) for x in (dB, dC))
    dD, dbias = (x if x is none else x.sum(0) for x in (dD, dbias))
    return du, ddelta, dA.sum(0).t(), dB, dC, dD, dz, dbias


def checkpoint_shape(batch: int, channels: int, length: int, states: int, groups: int, save: bool) -> Sequence[int]:
    """Shape of the states kept for the backward pass, one set per SPAN tokens."""
    return (batch, -(-length // SPAN), states, channels) if save else (0,)


def _blocks(channels: int, states: int, tile: int) -> dict[str, int]:
    """States and channels of a program, of these as many as a tile has room for, and whether blocks are always full."""
    rows = power_of_two(states)
    columns = min(power_of_two(channels), max(1, tile // rows))
    return {"BLOCK_N": rows, "BLOCK_E": columns, "EVEN_N": rows == states, "EVEN_E": channels % columns == 0}
