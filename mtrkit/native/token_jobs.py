"""The steps of a reduction as jobs of a chain; each returns what its job will write.

All tensors are on the CPU, contiguous where nothing else is said, and positions are int64: what is given is what an
earlier job writes, or has been brought into that form.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.native import jobs, library
from mtrkit.native.chain import Chain
from mtrkit.native.jobs import address


class Merge(NamedTuple):
    """Tokens (B, L, D), float32 or of 16 bits, how they are weighted, and whether they are averaged or added up."""

    tokens: Tensor
    weight: Tensor | None = None  # (B, L, 1), of each token in the mean; None: all equal
    mean: bool = True


def match(chain: Chain, metric: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    """See :func:`mtrkit.native.tokens.nearest`."""
    found = src.new_empty(src.shape)
    places = [*map(address, (metric, src, dst, found)), chain.wrong(metric.shape[1])]
    chain.add(
        library.MATCH, jobs.MATCH.pack(*metric.shape, src.shape[1], dst.shape[1], *places), metric, src, dst, found
    )
    return found


def cosines(chain: Chain, metric: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """See :func:`mtrkit.native.tokens.cosines`."""
    found = metric.new_empty(a.shape)
    places = [*map(address, (metric, a, b, found)), chain.wrong(metric.shape[1])]
    chain.add(library.COSINES, jobs.COSINES.pack(*metric.shape, a.shape[1], *places), metric, a, b, found)
    return found


def split(chain: Chain, score: Tensor, special: Tensor, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mtrkit.native.tokens.split`."""
    (batch, length), count = score.shape, special.shape[1]
    sizes = (count + top, length - count - top - bottom, bottom)
    keep, dst, src = (special.new_empty((batch, size)) for size in sizes)
    places = [*map(address, (score, special, keep, dst, src)), chain.wrong(length)]
    job = jobs.SPLIT.pack(batch, length, count, top, bottom, *places)
    chain.add(library.SPLIT, job, score, special, keep, dst, src)
    return keep, dst, src


def number(
    chain: Chain, length: int, kept: Tensor | int, merged: Tensor, target: Tensor, ordered: bool = True
) -> tuple[Tensor, Tensor]:
    """See :func:`mtrkit.native.tokens.number`; ``kept`` may be the number of tokens that do not merge."""
    batch = merged.shape[0]
    given, count = (None, kept) if isinstance(kept, int) else (kept, kept.shape[1])
    slot, sequence = merged.new_empty((batch, length)), merged.new_empty((batch, count))
    places = [*map(address, (given, merged, target, slot, sequence)), chain.wrong(length)]
    job = jobs.SLOTS.pack(batch, length, count, merged.shape[1], ordered, *places)
    chain.add(library.SLOTS, job, given, merged, target, slot, sequence)
    return slot, sequence


def merge(chain: Chain, given: Merge, slot: Tensor, slots: int, name: str = "") -> Tensor:
    """See :func:`mtrkit.native.tokens.merge`; tokens are float32. With a name into the chain's memory of that name."""
    tokens, weight, mean = given
    shape = (tokens.shape[0], slots, tokens.shape[2])
    found = chain.memory(name, shape) if name else tokens.new_empty(shape)
    places = [*map(address, (slot, tokens, weight, found)), chain.wrong(slots)]
    job = jobs.MERGE.pack(*tokens.shape[:2], slots, tokens.shape[2], mean, *places)
    chain.add(library.MERGE, job, slot, tokens, weight, found)
    return found


def by_turns(chain: Chain, special: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Of L tokens those that are not special (B, S), by turns: (B, half of them, rounded up), and (B, the rest)."""
    batch, count = special.shape
    first, second = (special.new_empty((batch, (length - count + more) // 2)) for more in (1, 0))
    places = [*map(address, (special, first, second)), chain.wrong(length)]
    chain.add(library.BY_TURNS, jobs.BY_TURNS.pack(batch, length, count, *places), special, first, second)
    return first, second


def neighbors(
    chain: Chain, metric: Tensor, special: Tensor, across_special: bool, protect: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Every second token that is not special (B, s), the more similar one beside it, and how similar it is, the cosine.

    Args:
        chain: What it is added to.
        metric: (B, L, D), by which tokens are compared.
        special: (B, S), at most L − 2.
        across_special: Whether two tokens are neighbours if a special one is between them.
        protect: Whether those beside a special token stay apart from the others.
    """
    (batch, length, _), count = metric.shape, special.shape[1]
    src, target = (special.new_empty((batch, (length - count + 1) // 2)) for _ in range(2))
    likeness = metric.new_empty(src.shape)
    places = [*map(address, (metric, special, src, target, likeness)), chain.wrong(length)]
    job = jobs.NEIGHBORS.pack(*metric.shape, count, across_special, protect, *places)
    chain.add(library.NEIGHBORS, job, metric, special, src, target, likeness)
    return src, target, likeness


def strongest(chain: Chain, src: Tensor, target: Tensor, strength: Tensor, best: int) -> tuple[Tensor, Tensor]:
    """The ``best`` strongest of links (B, s), as :func:`mtrkit.ops.strongest_links` ranks them: src and target."""
    best_src, best_target = (src.new_empty((src.shape[0], best)) for _ in range(2))
    tensors = (src, target, strength, best_src, best_target)
    chain.add(library.LINKS, jobs.LINKS.pack(*src.shape, best, *map(address, tensors)), *tensors)
    return best_src, best_target


def follow(chain: Chain, before: Tensor, slot: Tensor) -> Tensor:
    """Send slots (B, n) on to those that ``slot`` (B, L) names for them; −1 stays −1."""
    after = before.new_empty(before.shape)
    places = [*map(address, (before, slot, after)), chain.wrong(slot.shape[1])]
    chain.add(library.FOLLOW, jobs.FOLLOW.pack(*before.shape, slot.shape[1], *places), before, slot, after)
    return after


def rounded(chain: Chain, x: Tensor) -> Tensor:
    """As int64, halves to even numbers."""
    found = x.new_empty(x.shape, dtype=torch.int64)
    chain.add(library.ROUND, jobs.ROUND.pack(x.numel(), address(x), address(found)), x, found)
    return found


def add(chain: Chain, a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors of one shape, in the chain's memory for sums."""
    found = chain.memory("sum", a.shape)
    chain.add(library.ADD, jobs.ADD.pack(a.numel(), *map(address, (a, b, found))), a, b, found)
    return found


def narrow(chain: Chain, x: Tensor, dtype: torch.dtype) -> None:
    """Round numbers in their place to those of another dtype; only 16 bits change them."""
    if dtype in (torch.bfloat16, torch.float16):
        chain.add(library.NARROW, jobs.NARROW.pack(x.numel(), dtype is torch.bfloat16, address(x)), x)


def mean(chain: Chain, x: Tensor, divisor: float) -> Tensor:
    """(B, n, L) to the sums (B, L) over the middle, divided."""
    found = x.new_empty((x.shape[0], x.shape[2]))
    chain.add(library.SUM, jobs.SUM.pack(*x.shape, divisor, address(x), address(found)), x, found)
    return found
