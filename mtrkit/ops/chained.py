"""A reduction as jobs of a chain, for passes that are one call of the compiled library; see mtrkit.models.stretch.

What these functions return is written when the chain runs. They compute what their siblings do, bit for bit.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import token_jobs as jobs
from mtrkit.native.token_jobs import Merge
from mtrkit.ops.stream import with_residual
from mtrkit.scan import Chain
from mtrkit.types import BlockState, ChainedReduction, ReducedStream, Signals, Stage, TokenMap


def split_and_merge(chain: Chain, score: Tensor, special: Tensor, metric: Tensor, r: int) -> TokenMap:
    """Merge the r worst tokens into the most similar that are neither they nor the r best: see ``split_by_rank``."""
    candidates = score.shape[1] - special.shape[1]
    _, dst, src = jobs.split(chain, score, special, min(r, candidates - r - 1), r)
    return _map(chain, score.shape[1], src, jobs.match(chain, metric, src, dst))


def merge_by_turns(chain: Chain, metric: Tensor, special: Tensor, r: int) -> TokenMap:
    """Merge the r tokens of every two that are most similar to one of the others: see ``merge_odd_even``."""
    src, dst = jobs.by_turns(chain, special, metric.shape[1])
    target = jobs.match(chain, metric, src, dst)
    return _map(
        chain, metric.shape[1], *jobs.strongest(chain, src, target, jobs.cosines(chain, metric, src, target), r)
    )


def merge_neighbors(
    chain: Chain, metric: Tensor, special: Tensor, r: int, across_special: bool, protect: bool
) -> TokenMap:
    """Merge the r tokens of every two that are most similar to the one beside them: see ``match_neighbors``."""
    links = jobs.neighbors(chain, metric, special, across_special, protect)
    return _map(chain, metric.shape[1], *jobs.strongest(chain, *links, r))


def _map(chain: Chain, length: int, src: Tensor, target: Tensor) -> TokenMap:
    slot, kept = jobs.number(chain, length, length - src.shape[1], src, target)
    return TokenMap(slot, kept, src)


def add_in_chain(chain: Chain, a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors of one shape."""
    return jobs.add(chain, a, b)


def _special_slots(chain: Chain, stream: ReducedStream, positions: tuple[int, ...]) -> Tensor:
    """(B, S): where tokens stand by now that stood at these positions in the full sequence."""
    return jobs.follow(chain, _repeated(len(stream.slot), positions), stream.slot.contiguous())


@lru_cache(maxsize=64)
def _repeated(batch: int, positions: tuple[int, ...]) -> Tensor:
    return torch.tensor(positions, dtype=torch.int64, device="cpu").repeat(batch, 1)


Append = Callable[[Chain, BlockState, int, Any], TokenMap]
"""What makes a reduction's map as jobs of a chain, from the block, the number of tokens to keep and the options."""


class _Known(NamedTuple):
    """What makes the map of a reduction."""

    append: Append
    config: Any  # a MethodConfig


_KNOWN: dict[str, _Known] = {}  # a graph of a compiler can hold the keys, but not what they stand for


def know_reduction(key: str, append: Append, config: Any) -> None:
    """Note how to append a reduction of this key, which says all of its method and options."""
    _KNOWN[key] = _Known(append, config)


def append_reduction(
    chain: Chain, hidden: Tensor, inner: Tensor, signals: Signals, given: Any, reduction: ChainedReduction
) -> tuple[Tensor, ReducedStream]:
    """What a reducing block hands on, as jobs of a chain.

    Args:
        chain: What they are added to.
        hidden: (B, L, D) the mixer's output.
        inner: (B, L, D) the sum before its norm.
        signals: Of the mixer.
        given: What travelled in the residual's place in front of the block.
        reduction: Of a key that is known.
    """
    known = _known(reduction)
    stream = with_residual(given, inner)
    special = _special_slots(chain, stream, reduction.special)
    state = BlockState(hidden, inner, stream.size, special, signals, reduction.layer)
    to = known.append(chain, state, reduction.num_kept, known.config)
    return _reduce(chain, hidden, stream, to, reduction.keeps_time)


def reads_of(reduction: ChainedReduction) -> frozenset[str]:
    """The signals that a reduction needs, of a key that is known."""
    reads: frozenset[str] = _known(reduction).config.reads
    return reads


def _known(reduction: ChainedReduction) -> _Known:
    known = _KNOWN.get(reduction.key)
    if known is None:
        raise InputError(
            f"a compiled graph reduces by {reduction.key!r}, which was not applied in this process; call "
            "mtrkit.apply_reduction on its model before the graph is loaded"
        )
    return known


def foresee_reduction(hidden: Tensor, given: Any, reduction: ChainedReduction) -> tuple[Tensor, ReducedStream]:
    """What :func:`append_reduction` returns, as tensors without values."""
    batch, length, width = hidden.shape
    stream = with_residual(given, hidden)
    shapes = ((batch, length), (batch, reduction.num_kept), (batch, length - reduction.num_kept))
    slot, kept, merged = (stream.slot.new_empty(shape) for shape in shapes)
    after = stream.updated(
        residual=hidden.new_empty((*kept.shape, width), dtype=torch.float32),
        size=stream.size.new_empty((*kept.shape, 1)),
        slot=stream.slot.new_empty(stream.slot.shape),
        lengths=kept.new_empty(kept.shape) if reduction.keeps_time else None,
        stages=(*stream.stages, Stage(TokenMap(slot, kept, merged), None, None)),
    )
    return hidden.new_empty((*kept.shape, width)), after


def _reduce(
    chain: Chain, hidden: Tensor, stream: ReducedStream, to: TokenMap, keeps_time: bool
) -> tuple[Tensor, ReducedStream]:
    """``reduce_stream`` by a map that drops nothing; if it keeps time, tokens last as long as those that they are."""
    turn = len(stream.stages) % 2  # not into the memory of the last ones, which are read
    hidden = jobs.merge(chain, Merge(hidden, to.weight), to.slot, to.num_kept, f"hidden {turn}")
    residual = jobs.merge(chain, Merge(stream.residual, to.weight), to.slot, to.num_kept, f"residual {turn}")
    size = jobs.merge(chain, Merge(stream.size, mean=False), to.slot, to.num_kept)
    slot = jobs.follow(chain, stream.slot.contiguous(), to.slot)
    lengths = jobs.rounded(chain, size).squeeze(-1) if keeps_time else None
    stages = (*stream.stages, Stage(to, None, None))
    return hidden, stream.updated(residual=residual, size=size, slot=slot, stages=stages, lengths=lengths)
