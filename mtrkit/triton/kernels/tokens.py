"""Matching, numbering and merging tokens: a reduction in a handful of launches, with no sum in an order left to chance.

A position outside of the sequence is not followed: its partner or slot is −1, its cosine NaN. The host cannot look at
numbers on a GPU without waiting for it.
"""

import triton
import triton.language as tl

from mtrkit.triton.kernels.pointwise import load

SMALLEST = tl.constexpr(1e-12)  # length of a vector that counts as none
ROUNDING = tl.constexpr(16 * 1.1920928955078125e-07)  # of a cosine in float32


@triton.jit
def _inside(position, length):
    return (position >= 0) & (position < length)


@triton.jit
def _cosine_tile(
    metric, src, dst, length, width, metric_t, metric_d,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Cosines (BLOCK_S, BLOCK_T) of tokens at two lists of positions."""
    product = tl.zeros((BLOCK_S, BLOCK_T), tl.float32)
    src_squares, dst_squares = tl.zeros((BLOCK_S,), tl.float32), tl.zeros((BLOCK_T,), tl.float32)
    src_there, dst_there = _inside(src, length), _inside(dst, length)
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        a_mask = src_there[:, None] & (column < width)[None, :]
        b_mask = dst_there[None, :] & (column < width)[:, None]
        a = load(metric + src[:, None] * metric_t + column[None, :] * metric_d, a_mask)
        b = load(metric + dst[None, :] * metric_t + column[:, None] * metric_d, b_mask)
        product += tl.dot(a, b, input_precision="ieee")
        src_squares += tl.sum(a * a, 1)
        dst_squares += tl.sum(b * b, 0)
    src_length = tl.maximum(tl.sqrt(src_squares), SMALLEST)
    dst_length = tl.maximum(tl.sqrt(dst_squares), SMALLEST)
    return product / src_length[:, None] / dst_length[None, :]


@triton.jit(do_not_specialize=["length", "sources", "targets"])
def nearest(
    metric, src, dst, found, length, width, sources, targets, metric_b, metric_t, metric_d,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The most similar of ``dst`` for each of ``src``; of targets equal up to rounding the first.

    The targets are gone through twice, first for the greatest cosine: only then is it known which are equal to it.
    """
    tiles = tl.cdiv(sources, BLOCK_S)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    metric += sample * metric_b
    source = tl.load(src + sample * sources + row, mask=row < sources, other=0)
    dst += sample * targets
    best = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    wrong = ((source < 0) | (source >= length)).to(tl.int32)
    odd = tl.zeros((BLOCK_S,), tl.int32)  # whether a cosine is not a number: the first target is then as good as any
    for start in range(0, targets, BLOCK_T):
        column = start + tl.arange(0, BLOCK_T)
        target = tl.load(dst + column, mask=column < targets, other=0)
        score = _cosine_tile(metric, source, target, length, width, metric_t, metric_d, BLOCK_S, BLOCK_T, BLOCK_D)
        counts = (column < targets)[None, :]
        odd = tl.maximum(odd, tl.max((counts & (score != score)).to(tl.int32), 1))
        best = tl.maximum(best, tl.max(tl.where(counts, score, float("-inf")), 1))
        wrong = tl.maximum(wrong, tl.max(((target < 0) | (target >= length)).to(tl.int32), 0))
    first = tl.full((BLOCK_S,), 0, tl.int32) + targets
    for start in range(0, targets, BLOCK_T):
        column = start + tl.arange(0, BLOCK_T)
        target = tl.load(dst + column, mask=column < targets, other=0)
        score = _cosine_tile(metric, source, target, length, width, metric_t, metric_d, BLOCK_S, BLOCK_T, BLOCK_D)
        alike = (column < targets)[None, :] & (score >= best[:, None] - ROUNDING)
        first = tl.minimum(first, tl.min(tl.where(alike, column[None, :], targets), 1))
    first = tl.where((odd > 0) | (first >= targets), 0, first)
    partner = tl.where(wrong > 0, -1, tl.load(dst + first))
    tl.store(found + sample * sources + row, partner, mask=row < sources)


@triton.jit(do_not_specialize=["length", "pairs"])
def cosines(
    metric, a, b, found, length, width, pairs, metric_b, metric_t, metric_d,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The cosine of each pair, added up in the same order for all, so that equal pairs get equal numbers."""
    tiles = tl.cdiv(pairs, BLOCK_P)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    pair = (tl.program_id(0) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    metric += sample * metric_b
    one = tl.load(a + sample * pairs + pair, mask=pair < pairs, other=0)
    other = tl.load(b + sample * pairs + pair, mask=pair < pairs, other=0)
    there = _inside(one, length) & _inside(other, length)
    product = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    one_squares, other_squares = product, product
    for start in range(0, width, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)[None, :]
        mask = there[:, None] & (column < width)
        x = load(metric + one[:, None] * metric_t + column * metric_d, mask)
        y = load(metric + other[:, None] * metric_t + column * metric_d, mask)
        product += x * y
        one_squares += x * x
        other_squares += y * y
    one_length = tl.maximum(tl.sqrt(tl.sum(one_squares, 1)), SMALLEST)
    other_length = tl.maximum(tl.sqrt(tl.sum(other_squares, 1)), SMALLEST)
    cosine = tl.sum(product, 1) / (one_length * other_length)
    tl.store(found + sample * pairs + pair, tl.where(there, cosine, float("nan")), mask=pair < pairs)


@triton.jit(do_not_specialize=["length", "kept", "merged"])
def number(
    keep, merge, target, slot, sequence, length, kept, merged, ORDERED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Slots of a sample's tokens, and the kept ones in the order of their slots; one program per sample."""
    sample = tl.program_id(0).to(tl.int64)
    keep += sample * kept
    sequence += sample * kept
    merge += sample * merged
    target += sample * merged
    slot += sample * length
    for start in range(0, length, BLOCK):
        token = start + tl.arange(0, BLOCK)
        tl.store(slot + token, -1, mask=token < length)
    tl.debug_barrier()
    for start in range(0, kept, BLOCK):
        place = start + tl.arange(0, BLOCK)
        token = tl.load(keep + place, mask=place < kept, other=-1)
        tl.store(slot + token, place.to(tl.int64), mask=(place < kept) & _inside(token, length))
        known = place * 0 - 1 if ORDERED else tl.where(_inside(token, length), token, -1)
        tl.store(sequence + place, known, mask=place < kept)
    tl.debug_barrier()
    if ORDERED:
        before = 0
        for start in range(0, length, BLOCK):
            token = start + tl.arange(0, BLOCK)
            stays = (tl.load(slot + token, mask=token < length, other=-1) >= 0).to(tl.int32)
            place = before + tl.cumsum(stays, 0) - 1
            before += tl.sum(stays, 0)
            tl.debug_barrier()  # every thread has read the marks that are overwritten now
            tl.store(slot + token, tl.where(stays > 0, place, -1).to(tl.int64), mask=token < length)
            tl.store(sequence + place, token.to(tl.int64), mask=stays > 0)
        tl.debug_barrier()
    for start in range(0, merged, BLOCK):
        place = start + tl.arange(0, BLOCK)
        token = tl.load(merge + place, mask=place < merged, other=-1)
        goal = tl.load(target + place, mask=place < merged, other=-1)
        there = tl.load(slot + goal, mask=_inside(goal, length), other=-1)
        tl.store(slot + token, there, mask=(place < merged) & _inside(token, length))


@triton.jit
def _next_token(slot, own, previous, length, BLOCK_T: tl.constexpr):
    """The first token behind ``previous`` of each slot; ``length`` if there is none."""
    following = tl.zeros_like(previous) + length
    for start in range(0, length, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        goal = tl.load(slot + token, mask=token < length, other=-1).to(tl.int32)
        fits = (goal[None, :] == own[:, None]) & (token[None, :] > previous[:, None])
        following = tl.minimum(following, tl.min(tl.where(fits, token[None, :], length), 1))
    return following


@triton.jit(do_not_specialize=["length", "slots"])
def merge(
    tokens, slot, weight, merged, length, slots, width, tokens_b, tokens_t, tokens_d,
    MEAN: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """At each slot the mean, or the sum, of the tokens that go there, added up in their order.

    A program has a tile of slots and looks for the tokens of each, one after the other: few meet at a slot, and
    numbers compared cost less than a sort.
    """
    blocks, tiles = tl.cdiv(width, BLOCK_D), tl.cdiv(slots, BLOCK_S)
    column = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    own = ((tl.program_id(0) // blocks) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    sample = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    tokens += sample * tokens_b
    slot += sample * length
    whole = tl.zeros((BLOCK_S,), tl.float32)
    if weight is not None:
        weight += sample * length
        token = _next_token(slot, own, tl.zeros_like(own) - 1, length, BLOCK_T)
        while tl.min(token, 0) < length:
            whole += load(weight + token, token < length)
            token = _next_token(slot, own, token, length, BLOCK_T)
    total = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    met = tl.zeros((BLOCK_S,), tl.float32)
    token = _next_token(slot, own, tl.zeros_like(own) - 1, length, BLOCK_T)
    while tl.min(token, 0) < length:
        there = token < length
        mask = there[:, None] & (column < width)[None, :]
        row = load(tokens + token.to(tl.int64)[:, None] * tokens_t + column[None, :] * tokens_d, mask)
        if weight is not None:
            share = load(weight + token, there)
            share = tl.where(share == whole, 1.0, share / tl.where(there, whole, 1.0))
            row *= share[:, None]  # a token alone keeps every bit
        total = tl.where(there[:, None], tl.where((met == 0)[:, None], row, total + row), total)
        met += there.to(tl.float32)
        token = _next_token(slot, own, token, length, BLOCK_T)
    if MEAN and weight is None:
        total = tl.where((met > 1)[:, None], tl.math.div_rn(total, tl.maximum(met, 1.0)[:, None]), total)
    place = (sample * slots + own)[:, None] * width + column[None, :]
    tl.store(merged + place, total, mask=(own < slots)[:, None] & (column < width)[None, :])
