"""A whole mixer through the compiled library, in float32, without a way to take a derivative.

A few samples at a time go from projection to projection, so that what passes between the steps stays in the caches
and takes memory for these few only. Δ is never written: the scan expands it from its factors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan import library as lib
from mtrkit.scan.jobs import NO_VIEW, PROJECT, SCAN, address, dense, rows_of, view_of
from mtrkit.scan.weights import DirectionWeights

Job = tuple[int, bytes]

_CACHE_BYTES = 5 << 18  # of passing values for each thread: what a second-level cache holds
_NO_CONVOLUTION = (0, False, *NO_VIEW, 0, 0)


def mix(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, directions: Sequence[DirectionWeights]
) -> tuple[Tensor, Tensor]:
    """Mixer output (B, L, D) for normalised tokens (B, L, D), and what x_proj gave, (directions, B, L, R + 2N).

    The second direction runs backward.
    """
    hidden, into, out_of = dense(hidden), _pack(in_proj), _pack(out_proj)
    batch, length, width = hidden.shape
    inner = out_proj.shape[1]
    ways = [_prepare(weights) for weights in directions]
    columns = [_columns(into), inner, inner]
    size = _part(batch, length * (sum(columns) + _columns(ways[0].x_proj)))
    xz, u, y = (hidden.new_empty((size, length, count)) for count in columns)
    projected = hidden.new_empty((len(ways), batch, length, _columns(ways[0].x_proj)))
    out = hidden.new_empty((batch, length, _columns(out_of)))
    jobs = []
    for tokens, result, seen in zip(hidden.split(size), out.split(size), projected.split(size, dim=1), strict=True):
        count = tokens.shape[0]
        x, z = (xz[:count, :, start : start + inner].transpose(1, 2) for start in (0, inner))
        jobs.append(_project(tokens, into, xz))
        for i, way in enumerate(ways):
            jobs.append(_project(u[:count], way.x_proj, seen[i], _convolution(x, way, i == 1)))
            jobs.append(_scan(u[:count], seen[i], way, y, z if i == len(ways) - 1 else None, i))
        jobs.append(_project(y[:count], out_of, result))
    lib.library().run(*jobs)
    return out[..., :width].contiguous(), projected[..., : directions[0].x_proj.shape[0]].contiguous()


def _prepare(weights: DirectionWeights) -> DirectionWeights:
    """Float32, contiguous, and x_proj packed."""
    ready = DirectionWeights._make(weight if weight is None else dense(weight) for weight in weights)
    return ready._replace(x_proj=_pack(ready.x_proj))


def _pack(weight: Tensor) -> Tensor:
    """(columns, E) to (blocks, E, BLOCK), with columns of zeros to the end of the last block."""
    missing = -weight.shape[0] % lib.BLOCK
    padded = F.pad(dense(weight), (0, 0, 0, missing)) if missing else dense(weight)
    return padded.unflatten(0, (-1, lib.BLOCK)).transpose(1, 2).contiguous()


def _columns(packed: Tensor) -> int:
    return packed.shape[0] * lib.BLOCK


def _part(batch: int, floats: int) -> int:
    """Samples to take at a time if each has so many floats between the steps."""
    return max(1, min(batch, torch.get_num_threads() * max(1, _CACHE_BYTES // (4 * floats))))


def _convolution(x: Tensor, way: DirectionWeights, reverse: bool) -> tuple[int, ...]:
    return (way.conv_weight.shape[-1], reverse, *view_of(x), address(way.conv_weight), address(way.conv_bias))


def _project(tokens: Tensor, weight: Tensor, out: Tensor, convolution: tuple[int, ...] = _NO_CONVOLUTION) -> Job:
    """Writes the product of tokens (B, L, E) and a packed weight; a convolution with SiLU writes the tokens first."""
    batch, length, channels = tokens.shape
    taps, reverse, *x, weight_address, bias_address = convolution
    job = PROJECT.pack(
        *(batch, channels, length, taps, True, reverse),
        *(*x, *view_of(tokens.transpose(1, 2)), *NO_VIEW, *NO_VIEW),
        *(weight_address, bias_address, 0),
        *(_columns(weight), address(weight), *rows_of(out.transpose(1, 2)[:, None])),
    )
    return lib.PROJECT, job


def _scan(u: Tensor, projected: Tensor, way: DirectionWeights, y: Tensor, z: Tensor | None, direction: int) -> Job:
    """Adds the scan of u (B, L, E) to ``y``, or writes it in the first direction, then gates the sum by z if given."""
    batch, length, channels = u.shape
    rank, states = way.dt_weight.shape[1], way.A.shape[1]
    rows = projected.transpose(1, 2)[:, None]
    job = SCAN.pack(
        *(batch, channels, length, states, 1, True, direction == 1, rank, direction > 0),
        *(*view_of(u.transpose(1, 2)), *NO_VIEW, *view_of(z), *view_of(y.transpose(1, 2))),
        *(NO_VIEW * 4),
        *(*rows_of(rows[:, :, rank:]), *rows_of(rows[:, :, rank + states :]), *rows_of(rows), address(way.dt_weight)),
        *(address(way.A), address(way.D), address(way.dt_bias), 0, 0, 0, 0, 0),
    )
    return lib.SCAN_FORWARD, job
