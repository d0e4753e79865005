"""A whole mixer, the norm before it, and several of both, by the compiled library, without a way to take a derivative.

The library makes a mixer a chain of jobs, see mixer.h; here it only gets everything's address. Δ is written
only if it is read: otherwise the scan expands it from its factors.

All is computed in float32, but for tokens and weights of bfloat16: a processor that has instructions for it multiplies
them in the projections, and adds in float32. One that has none widens the weights.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import library as lib
from mtrkit.native import token_jobs
from mtrkit.native.chain import Chain
from mtrkit.native.jobs import MIXER, NORM, address, dense, dense_half, dense_places, positions
from mtrkit.native.weights import BlockWeights, DirectionWeights, MixerWeights
from mtrkit.native.workspace import workspace

_CACHED = 1 << 19  # floats between the steps, per thread
_TASKS = 8  # per thread and step
_BY_INSTRUCTION = 2  # HALF_BY_INSTRUCTION of jobs.h
_PLACES = 11 + 2 * len(DirectionWeights._fields)  # addresses in a mixer's job


class PlacedMixer(NamedTuple):
    """Where a mixer's weights lie; they stay there, and those that were made for it are held, until it has run."""

    shapes: tuple[torch.Size | None, ...]
    places: list[int]
    made: list[Tensor]  # in the place of weights that could not be read as they are
    halves: bool  # whether the big weights are read as bfloat16
    products: int  # how these are multiplied, as in jobs.h
    scale: float


class PlacedBlock(NamedTuple):
    """The same of a block."""

    norm: Tensor
    eps: float
    mixer: PlacedMixer


def place_mixer(weights: MixerWeights, dtype: torch.dtype) -> PlacedMixer:
    """For tokens of this dtype; weights without biases outside of the directions."""
    layers: list[Tensor | None] = [weights.in_proj, weights.out_proj]
    layers += [weight for way in weights.directions for weight in way]
    halves, products = _halves(dtype, weights)
    places, made = dense_places(layers, halves)
    shapes = _one_of_its_kind(tuple([None if weight is None else weight.shape for weight in layers]))
    scale = 0.5 if weights.halve else 1.0  # on the weights, which gives the same bits as on the sum
    return PlacedMixer(shapes, places, made, bool(halves), products, scale)


def place_block(block: BlockWeights, dtype: torch.dtype) -> PlacedBlock:
    """:func:`place_mixer` of a block."""
    return PlacedBlock(dense(block.norm), block.eps, place_mixer(block.mixer, dtype))


def mix(
    hidden: Tensor,
    weights: MixerWeights,
    reads: Sequence[str] = (),
    lengths: Tensor | None = None,
    left_out: Tensor | None = None,
) -> list[Tensor]:
    """Mixer output (B, L, D) for normalised tokens (B, L, D), and the signals that are read, in their order.

    Args:
        hidden: (B, L, D) float32 or of 16 bits.
        weights: Without biases outside of the directions; the second direction runs backward.
        reads: Names of fields of :class:`mtrkit.types.Signals`, but for those of attention.
        lengths: (B, L) int64, how many positions each token lasts; their outputs are means over these. Default: one.
        left_out: (directions, B) int64, 1 for the scans that add nothing; what is read of these is undefined. Default:
            none.
    """
    with Chain() as chain:
        placed = place_mixer(weights, hidden.dtype)
        mixer = _append(chain, hidden, placed, reads, lengths, hidden.dtype, left_out=left_out)
    return mixer.results(reads)


class Appended(NamedTuple):
    """A mixer in a chain, and what it writes."""

    dtype: torch.dtype
    sizes: tuple[int, ...]
    out: Tensor
    projected: Tensor
    delta: Tensor | None
    delta_mean: Tensor | None
    y: Tensor | None
    space: tuple[Tensor, list[int]]  # of the workspace
    weights: PlacedMixer

    def results(self, reads: Sequence[str]) -> list[Tensor]:
        """Output and signals, once it has run."""
        found = _read(reads, self)
        signals = [found[name] if name == "delta_mean" else found[name].to(self.dtype) for name in reads]
        return [_columns(self.out, self.sizes[2]).to(self.dtype), *signals]


def _append(
    chain: Chain,
    hidden: Tensor,
    weights: PlacedMixer,
    reads: Sequence[str],
    lengths: Tensor | None,
    dtype: torch.dtype,
    before: Appended | None = None,
    left_out: Tensor | None = None,
) -> Appended:
    """See :func:`mix`; a mixer of the same sizes that runs ``before`` lends its memory."""
    hidden = dense(hidden)
    if before is not None and before.weights.shapes is weights.shapes:  # it has had as many tokens
        sizes, out, projected, (memory, between) = before.sizes, before.out, before.projected, before.space
    else:
        sizes, shapes, counts = _layout(torch.get_num_threads(), hidden.shape, weights.shapes)
        out, projected = map(chain.memory, ("out", "projected"), shapes)
        memory, between = workspace(counts)
    delta = _delta_as_read(chain, hidden, reads, sizes[3])
    y = hidden.new_empty((*hidden.shape[:2], sizes[3])) if "y" in reads else None
    places = [*map(address, (out, projected, delta, y)), *between, address(hidden), *weights.places]
    missing = [0] * (_PLACES - len(places))  # where there is one direction
    if lengths is not None:
        lengths = _check_lengths(lengths, hidden)
    sums = delta is not None and "delta" not in reads
    numbers = (sums, weights.halves, weights.products, weights.scale)
    if left_out is not None:
        left_out = _check_left_out(left_out, len(hidden), sizes[7])
    job = MIXER.pack(*sizes, *numbers, *places, *missing, address(lengths), address(left_out))
    chain.add(lib.MIXER, job, memory, hidden, weights, lengths, left_out, out, projected, delta, y)
    means = token_jobs.mean(chain, delta, sizes[3]) if delta is not None and sums else None
    return Appended(dtype, sizes, out, projected, delta, means, y, (memory, between), weights)


def _halves(dtype: torch.dtype, weights: MixerWeights) -> tuple[frozenset[int], int]:
    """Which weights the library reads as bfloat16, by their ids, and how it multiplies them, as in jobs.h."""
    if dtype is not torch.bfloat16:
        return frozenset(), 0
    big = (weights.in_proj, weights.out_proj, *(way.x_proj for way in weights.directions))
    if any(dense_half(weight) is None for weight in big):
        return frozenset(), 0
    even = not any(weight.shape[-1] % 2 for weight in big)
    by_instruction = lib.library().multiplies_halves() and even
    return frozenset(map(id, big)), _BY_INSTRUCTION if by_instruction else 0


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm of ``residual + x`` (..., D), times ``weight``, like x, and that sum, in float32."""
    dtype, x, residual, weight = x.dtype, _as_summand(x), dense(residual), dense(weight)
    normed, total = torch.empty_like(residual), torch.empty_like(residual)
    with Chain() as chain:
        _append_norm(chain, x, residual, weight, eps, normed, total)
    return normed.to(dtype), total


def append_blocks(
    chain: Chain,
    x: Tensor,
    residual: Tensor | None,
    blocks: Sequence[PlacedBlock],
    reads: Sequence[str] = (),
    lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Appended, Tensor]:
    """Several blocks as jobs of a chain: norm of the sum, then mixer, whose output the next block adds to the sum.

    Args:
        chain: What they are added to.
        x: (B, L, D), to be added before the first norm.
        residual: (B, L, D) float32, what it is added to; ``None``: nothing.
        blocks: Their weights.
        reads: As of :func:`mix`, of the last mixer.
        lengths: As of :func:`mix`, of all mixers.
        dtype: Of the tokens outside of the chain, to which what mixers give is rounded. Default: that of x.

    Returns:
        The last mixer, and the sum before its norm.
    """
    dtype, last = dtype or x.dtype, None
    if residual is None:  # the bits are those of a first block that runs alone
        normed = dense(F.rms_norm(x.float(), x.shape[-1:], blocks[0].norm, blocks[0].eps).to(dtype))
        total = chain.memory("total", x.shape).copy_(x)
    else:
        x, residual = _as_summand(x), dense(residual)
        normed, total = (chain.memory(name, residual.shape) for name in ("normed", "total"))
    for index, block in enumerate(blocks):
        if residual is not None:
            _append_norm(chain, x, residual, block.norm, block.eps, normed, total)
        last = _append(chain, normed, block.mixer, reads if index == len(blocks) - 1 else (), lengths, dtype, last)
        token_jobs.narrow(chain, last.out, dtype)
        x, residual = last.out, total
    assert last is not None
    return last, total


def _append_norm(
    chain: Chain, x: Tensor, residual: Tensor, weight: Tensor, eps: float, normed: Tensor, total: Tensor
) -> None:
    """The job that writes the norm and the sum; all are dense."""
    if residual.shape != x.shape or weight.shape != x.shape[-1:]:
        given = f"residual {tuple(residual.shape)}, weight of the norm {tuple(weight.shape)}"
        raise InputError(f"shapes do not fit: hidden states {tuple(x.shape)}, {given}")
    rows, tensors = x.numel() // max(1, x.shape[-1]), (x, residual, weight, total, normed)
    job = NORM.pack(rows, x.shape[-1], x.dtype is torch.bfloat16, eps, *map(address, tensors))
    chain.add(lib.NORM, job, *tensors)


def _as_summand(x: Tensor) -> Tensor:
    half = dense_half(x)
    return dense(x) if half is None else half


def _check_lengths(lengths: Tensor, hidden: Tensor) -> Tensor:
    if lengths.shape != hidden.shape[:2]:
        raise InputError(
            f"lengths have shape {tuple(lengths.shape)}; expected {tuple(hidden.shape[:2])}, one per token"
        )
    return positions(lengths)


def _check_left_out(left_out: Tensor, batch: int, directions: int) -> Tensor:
    if left_out.shape != (directions, batch):
        raise InputError(f"left_out has shape {tuple(left_out.shape)}; expected {(directions, batch)}, one per scan")
    return positions(left_out)


def _delta_as_read(chain: Chain, hidden: Tensor, reads: Sequence[str], inner: int) -> Tensor | None:
    """Where Δ goes: all of it, (B, L, E), or its sums over blocks of channels, (B, blocks, L), or nowhere."""
    batch, length, _ = hidden.shape
    if "delta" in reads:
        return hidden.new_empty((batch, length, inner))
    return chain.memory("sums", (batch, -(-inner // lib.BLOCK), length)) if "delta_mean" in reads else None


def _read(reads: Sequence[str], mixer: Appended) -> dict[str, Tensor]:
    """The signals by name, from what the jobs wrote; B and C are summed over the directions."""
    inner, states, rank = mixer.sizes[3:6]
    own = (("delta", mixer.delta), ("y", mixer.y), ("delta_mean", mixer.delta_mean))
    found = {name: tensor for name, tensor in own if tensor is not None}
    if "delta_mean" in reads and mixer.delta_mean is None:
        found["delta_mean"] = found["delta"].sum(dim=2) / inner
    if "ssm_B" in reads:
        found["ssm_B"] = mixer.projected[..., rank : rank + states].sum(dim=0)
    if "ssm_C" in reads:
        found["ssm_C"] = mixer.projected[..., rank + states : rank + 2 * states].sum(dim=0)
    return found


@lru_cache(maxsize=256)
def _one_of_its_kind(shapes: tuple[torch.Size | None, ...]) -> tuple[torch.Size | None, ...]:
    """The same object for the same shapes, which is quickly compared."""
    return shapes


@lru_cache(maxsize=256)
def _layout(
    threads: int, tokens: torch.Size, weights: tuple[torch.Size | None, ...]
) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[int]]:
    """From all shapes the sizes in a mixer's job, the shapes of what it writes, and the floats between its steps."""
    count = len(DirectionWeights._fields)
    ways = [weights[i : i + count] for i in range(2, len(weights), count)]
    if len(tokens) != 3 or not 1 <= len(ways) <= 2:
        raise InputError(f"{len(ways)} directions and tokens of shape {tuple(tokens)}; expected 1 or 2, and (B, L, D)")
    batch, length, width = tokens
    directions = [DirectionWeights._make(way) for way in ways]
    inner, states, rank, taps = _check_shapes(width, weights[0], weights[1], directions)
    found, both = _filled_up(rank + 2 * states), _filled_up(2 * inner)
    packed = both * width + _filled_up(width) * inner
    packed += len(ways) * (found * inner + _filled_up(inner) * (rank + states))
    out, projected = (batch, length, _filled_up(width)), (len(ways), batch, length, found)
    chunk = _samples_at_once(threads, batch, length * (both + 2 * inner), inner)
    between = [*(chunk * length * columns for columns in (both, inner, inner)), packed]
    return (*tokens, inner, states, rank, taps, len(ways), chunk), [out, projected], between


def _samples_at_once(threads: int, batch: int, sample: int, inner: int) -> int:
    """How many samples are taken through the whole mixer together, each with ``sample`` floats between the steps.

    Few, so that these stay in the threads' caches, but enough that every step gives each thread several tasks.
    """
    tasks = _TASKS * threads // -(-inner // lib.BLOCK)
    return max(1, min(batch, max(tasks, threads * _CACHED // sample)))


def _check_shapes(width: int, in_proj: Any, out_proj: Any, directions: Sequence[Any]) -> tuple[int, int, int, int]:
    """Raise :class:`InputError` unless the shapes of a mixer's weights fit together and to tokens of this width.

    Returns:
        Inner width E, state size N, rank R of Δ and width K of the convolution.
    """
    inner, states, rank = out_proj[-1], directions[0].A_log[-1], directions[0].dt_weight[-1]
    taps = directions[0].conv_weight[-1]
    expected: dict[str, tuple[int, ...]] = {
        **{"in_proj": (2 * inner, width), "out_proj": (width, inner), "x_proj": (rank + 2 * states, inner)},
        **{"conv_weight": (inner, 1, taps), "dt_weight": (inner, rank), "A_log": (inner, states)},
        **dict.fromkeys(("conv_bias", "dt_bias", "D"), (inner,)),
    }
    for weights in ({"in_proj": in_proj, "out_proj": out_proj}, *(way._asdict() for way in directions)):
        for name, shape in weights.items():
            if shape is not None and tuple(shape) != expected[name]:
                fits = f"beside the other weights {expected[name]} fits"
                raise InputError(f"the mixer's {name} has shape {tuple(shape)}; {fits}")
    return inner, states, rank, taps


def _filled_up(columns: int) -> int:
    """As many as the product writes."""
    return -(-columns // lib.BLOCK) * lib.BLOCK


def _columns(x: Tensor, count: int) -> Tensor:
    """The first ones."""
    return x if x.shape[-1] == count else x[..., :count].contiguous()
