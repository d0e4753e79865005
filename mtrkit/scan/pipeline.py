"""A whole mixer, and the norm before it, through the compiled library, in float32, without a way to take a derivative.

The steps go from projection to projection as one chain of jobs. Δ is never written unless somebody looks: the scan
expands it from its factors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.scan import library as lib
from mtrkit.scan.jobs import NO_VIEW, NORM, PACK, PROJECT, SCAN, address, dense, view_of
from mtrkit.scan.weights import DirectionWeights

Job = tuple[int, bytes]
View = tuple[int, int, int, int]


_LOG2E = math.log2(math.e)


class _Packed(NamedTuple):
    """A weight (columns, E) in the order the product reads, written by a job of its own."""

    values: Tensor  # (blocks, E, BLOCK), filled up after the last column
    source: Tensor  # held until the job has run
    job: Job

    @property
    def columns(self) -> int:
        """Those that fill up included."""
        return self.values.shape[0] * lib.BLOCK


class _Way(NamedTuple):
    """One direction's weights: as they are, float32 and contiguous, and those that are packed."""

    plain: DirectionWeights
    x_proj: _Packed
    dt_weight: _Packed
    A: _Packed  # times log2(e)


class _Rows(NamedTuple):
    """A contiguous tensor (B, L, columns) by its address; a view of torch would take as long as packing a job."""

    address: int
    batch: int
    length: int
    columns: int

    @classmethod
    def of(cls, x: Tensor) -> "_Rows":
        """Where the tensor lies."""
        return cls(x.data_ptr(), *x.shape)

    def view(self, column: int = 0) -> View:
        """Address and strides as (B, columns, L), from this column on."""
        return (self.address + 4 * column, self.length * self.columns, 1, self.columns)

    def flat(self) -> "_Rows":
        """All tokens as those of one sample."""
        return _Rows(self.address, 1, self.batch * self.length, self.columns)


def mix(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    scale: float = 1.0,
    reads: Sequence[str] = (),
) -> list[Tensor]:
    """Mixer output (B, L, D) for normalised tokens (B, L, D), scaled, and what is read on the way, in its order.

    ``"projected"`` is what x_proj gave, (directions, B, L, R + 2N); ``"delta"`` the directions' Δ, summed, (B, L, E);
    ``"delta_sums"`` in its place the sums of that over blocks of channels, (B, blocks, L). The second direction runs
    backward.
    """
    hidden, into, out_of = dense(hidden), _pack(in_proj), _pack(out_proj, scale)
    tokens, width, inner = hidden.shape[:2], hidden.shape[2], out_proj.shape[1]
    ways = [_prepare(weights) for weights in directions]
    xz, u, y, out = (hidden.new_empty((*tokens, count)) for count in (into.columns, inner, inner, out_of.columns))
    projected = hidden.new_empty((len(ways), *tokens, ways[0].x_proj.columns))
    deltas = {name: hidden.new_empty(delta_shape(name, tokens, inner)) for name in reads if name != "projected"}
    steps = next((view_of(_channels_first(name, delta)) for name, delta in deltas.items()), NO_VIEW)
    jobs = [packed.job for packed in (into, out_of, *(packed for way in ways for packed in way[1:]))]
    jobs.append(_project(_Rows.of(hidden), into, _Rows.of(xz)))
    for i, (way, seen) in enumerate(zip(ways, projected, strict=True)):
        gate = _Rows.of(xz).view(inner) if i == len(ways) - 1 else NO_VIEW
        jobs.append(_convolve(_Rows.of(xz), way, _Rows.of(u), _Rows.of(seen), i == 1))
        jobs.append(_scan(_Rows.of(u), _Rows.of(seen), way, gate, _Rows.of(y), steps, "delta_sums" in deltas, i))
    lib.library().run(*jobs, _project(_Rows.of(y), out_of, _Rows.of(out)))
    found = [deltas[n] if n in deltas else _columns(projected, directions[0].x_proj.shape[0]) for n in reads]
    return [_columns(out, width), *found]


def delta_shape(name: str, tokens: Sequence[int], inner: int) -> tuple[int, int, int]:
    """For tokens (B, L) of what can be read of Δ: ``"delta"`` or ``"delta_sums"``."""
    batch, length = tokens
    return (batch, length, inner) if name == "delta" else (batch, -(-inner // lib.BLOCK), length)


def _channels_first(name: str, delta: Tensor) -> Tensor:
    return delta.transpose(1, 2) if name == "delta" else delta


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm of ``residual + x`` (..., D), times ``weight``, and that sum."""
    x, residual, weight = dense(x), dense(residual), dense(weight)
    total, normed = torch.empty_like(x), torch.empty_like(x)
    rows = x.numel() // max(1, x.shape[-1])
    places = (address(tensor) for tensor in (x, residual, weight, total, normed))
    lib.library().run((lib.NORM, NORM.pack(rows, x.shape[-1], eps, *places)))
    return normed, total


def _columns(x: Tensor, count: int) -> Tensor:
    """The first ones."""
    return x if x.shape[-1] == count else x[..., :count].contiguous()


def _prepare(weights: DirectionWeights) -> _Way:
    plain = DirectionWeights._make(weight if weight is None else dense(weight) for weight in weights)
    packed = _pack(plain.x_proj), _pack(plain.dt_weight), _pack(plain.A_log, _LOG2E, decay=True)
    return _Way(plain, *packed)


def _pack(weight: Tensor, scale: float = 1.0, decay: bool = False) -> _Packed:
    source = dense(weight)
    columns, channels = source.shape
    values = source.new_empty((-(-columns // lib.BLOCK), channels, lib.BLOCK))
    job = PACK.pack(columns, channels, decay, scale, address(source), address(values))
    return _Packed(values, source, (lib.PACK, job))


def _project(tokens: _Rows, weight: _Packed, out: _Rows) -> Job:
    """Writes the product of tokens and a weight; samples one behind the other fill the tiles of the product."""
    tokens, out = tokens.flat(), out.flat()
    sizes = (1, tokens.columns, tokens.length, 0, False, False)
    return _product((*sizes, *NO_VIEW, *tokens.view(), *(NO_VIEW * 2), 0, 0, 0), weight, out)


def _convolve(xz: _Rows, way: _Way, u: _Rows, projected: _Rows, reverse: bool) -> Job:
    """Writes the convolution of x with SiLU to ``u``, and the product of that and x_proj."""
    weight, bias = way.plain.conv_weight, way.plain.conv_bias
    sizes = (u.batch, u.columns, u.length, weight.shape[-1], True, reverse)
    convolution = (*sizes, *xz.view(), *u.view(), *(NO_VIEW * 2), address(weight), address(bias), 0)
    return _product(convolution, way.x_proj, projected)


def _product(convolution: tuple[int, ...], weight: _Packed, out: _Rows) -> Job:
    return lib.PROJECT, PROJECT.pack(*convolution, weight.columns, address(weight.values), *out.view())


def _scan(
    u: _Rows, projected: _Rows, way: _Way, gate: View, y: _Rows, steps: View, sum_steps: bool, direction: int
) -> Job:
    """Adds the scan of u to ``y``, or writes it in the first direction, then gates the sum if there is a gate.

    Δ, or its sums over blocks of channels, go the same way to ``steps``.
    """
    rank, states = way.plain.dt_weight.shape[1], way.plain.A_log.shape[1]
    job = SCAN.pack(
        *(u.batch, u.columns, u.length, states, 1, True, direction == 1, rank, direction > 0, sum_steps),
        *(*u.view(), *NO_VIEW, *gate, *y.view(), *(NO_VIEW * 4), *steps),
        *(*projected.view(rank), *projected.view(rank + states), *projected.view(), address(way.dt_weight.values)),
        *(address(way.A.values), address(way.plain.D), address(way.plain.dt_bias), 0, 0, 0, 0, 0),
    )
    return lib.SCAN_FORWARD, job
