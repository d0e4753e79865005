"""A whole mixer, and the norm before it, through the compiled library, in float32, without a way to take a derivative.

The library makes a mixer a chain of jobs, see native_mixer.h; here it only gets everything's address. Δ is never
written unless somebody looks: the scan expands it from its factors.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import library as lib
from mtrkit.native.jobs import MIXER, NORM, address, dense
from mtrkit.native.weights import DirectionWeights

_PLACES = 11 + 2 * len(DirectionWeights._fields)  # addresses in a mixer's job


def mix(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    scale: float = 1.0,
    reads: Sequence[str] = (),
    before: Sequence[lib.Job] = (),
) -> list[Tensor]:
    """Mixer output (B, L, D) for normalised tokens (B, L, D), scaled, and what is read on the way, in its order.

    ``"projected"`` is what x_proj gave, (directions, B, L, R + 2N); ``"delta"`` the directions' Δ, summed, (B, L, E);
    ``"delta_sums"`` in its place the sums of that over blocks of channels, (B, blocks, L); ``"y"`` the sum of the scans
    before the gate, (B, L, E). The second direction runs backward. Jobs ``before`` may be what writes the tokens.
    """
    weights = [in_proj, out_proj, *(weight for way in directions for weight in way)]
    sizes, own = _layout(hidden.shape, *[None if weight is None else weight.shape for weight in weights])
    batch, length, width, inner, states, rank, *_ = sizes
    out, projected, *between = [hidden.new_empty(shape) for shape in own]
    seen = {n: hidden.new_empty(seen_shape(n, (batch, length), inner)) for n in reads if n != "projected"}
    delta = seen.get("delta_sums", seen.get("delta"))
    given = [None if x is None else dense(x) for x in (hidden, *weights)]
    places = [address(x) for x in (out, projected, delta, seen.get("y"), *between, *given)]
    missing = [0] * (_PLACES - len(places))  # where there is one direction
    lib.library().run_mixer(MIXER.pack(*sizes, "delta_sums" in seen, scale, *places, *missing), *before)
    read = [seen[n] if n in seen else _columns(projected, rank + 2 * states) for n in reads]
    return [_columns(out, width), *read]


def seen_shape(name: str, tokens: Sequence[int], inner: int) -> tuple[int, int, int]:
    """For tokens (B, L) of what can be read of Δ, ``"delta"`` or ``"delta_sums"``, or of the scans, ``"y"``."""
    batch, length = tokens
    return (batch, -(-inner // lib.BLOCK), length) if name == "delta_sums" else (batch, length, inner)


def add_and_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm of ``residual + x`` (..., D), times ``weight``, and that sum."""
    x, residual, weight = dense(x), dense(residual), dense(weight)
    job, normed, total = _norm(x, residual, weight, eps)
    lib.library().run(job)
    return normed, total


def norm_and_mix(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """:func:`mix` of the norm of :func:`add_and_norm`, and the sum."""
    x, residual, weight = dense(x), dense(residual), dense(weight)
    job, normed, total = _norm(x, residual, weight, eps)
    return mix(normed, in_proj, out_proj, directions, scale, before=(job,))[0], total


def _norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[lib.Job, Tensor, Tensor]:
    """The job, and the norm and the sum that it will write; all are dense, and the caller holds them until then."""
    _check_norm(x.shape, residual.shape, weight.shape)
    total, normed = torch.empty_like(x), torch.empty_like(x)
    rows = x.numel() // max(1, x.shape[-1])
    places = (address(tensor) for tensor in (x, residual, weight, total, normed))
    return (lib.NORM, NORM.pack(rows, x.shape[-1], eps, *places)), normed, total


@lru_cache(maxsize=256)
def _layout(tokens: torch.Size, *weights: torch.Size | None) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """From all shapes the sizes in a mixer's job, and the shapes of what it writes."""
    count = len(DirectionWeights._fields)
    ways = [weights[i : i + count] for i in range(2, len(weights), count)]
    batch, length, width = tokens
    directions = [DirectionWeights._make(way) for way in ways]
    inner, states, rank, taps = _check_mixer(width, weights[0], weights[1], directions)
    found, both = _filled_up(rank + 2 * states), _filled_up(2 * inner)
    packed = both * width + _filled_up(width) * inner
    packed += len(ways) * (found * inner + _filled_up(inner) * (rank + states))
    out, projected = (batch, length, _filled_up(width)), (len(ways), batch, length, found)
    between = [(batch, length, both), (batch, length, inner), (batch, length, inner), (packed,)]
    return (*tokens, inner, states, rank, taps, len(ways)), [out, projected, *between]


def _filled_up(columns: int) -> int:
    """As many as the product writes."""
    return -(-columns // lib.BLOCK) * lib.BLOCK


def _columns(x: Tensor, count: int) -> Tensor:
    """The first ones."""
    return x if x.shape[-1] == count else x[..., :count].contiguous()


def _check_mixer(width: int, in_proj: Any, out_proj: Any, directions: Sequence[Any]) -> tuple[int, int, int, int]:
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


def _check_norm(x: Any, residual: Any, weight: Any) -> None:
    """Raise :class:`InputError` unless a residual has the shape of x (..., D) and a norm's weight (D,)."""
    if residual != x or weight != x[-1:]:
        found = f"residual {tuple(residual)}, weight of the norm {tuple(weight)}"
        raise InputError(f"shapes do not fit: hidden states {tuple(x)}, {found}")
