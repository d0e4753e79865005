"""The operators once more, for one sample, as loops over plain lists.

For reading, and as the truth in tests: each function does what the tensor operator of the same name does to
every sample of a batch. Tokens are a list of L rows of floats, positions are ints, and Python floats
are double precision.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtrkit.ops.match import Similarity
from mtrkit.ops.score import ChannelReduction
from mtrkit.types import Combine

Row = Sequence[float]


class Map(NamedTuple):
    """A :class:`~mtrkit.types.TokenMap` of one sample, without what it says about means."""

    slot: list[int]  # output slot of each input token, −1 for a dropped one
    kept: list[int]  # input token that stands at each slot
    merged: list[int]  # input tokens merged into another one's slot


def channel_score(signal: Iterable[Row], reduction: ChannelReduction = "mean") -> list[float]:
    """One number per token from its channels."""
    if reduction == "mean":
        return [sum(row) / len(row) for row in signal]
    if reduction == "clipped":
        return [sum(max(value, 0.0) for value in row) / len(row) for row in signal]
    if reduction == "l1":
        return [sum(abs(value) for value in row) / len(row) for row in signal]
    return [_norm(row) for row in signal]


def class_score(features: Sequence[Row], special: Sequence[int]) -> list[float]:
    """Mean cosine similarity of each token to the special ones, or to all if there are none."""
    anchors = special or range(len(features))
    return [sum(_cosine(row, features[anchor]) for anchor in anchors) / len(anchors) for row in features]


def standardize(score: Sequence[float]) -> list[float]:
    """Scores less their mean, over their standard deviation."""
    mean = sum(score) / len(score)
    spread = math.sqrt(sum((value - mean) ** 2 for value in score) / len(score))
    return [(value - mean) / spread if spread else 0.0 for value in score]


def without(sequence: Iterable[int], gone: Sequence[int]) -> list[int]:
    """What is left of the sequence, in its order."""
    return [token for token in sequence if token not in gone]


def rank_tokens(score: Sequence[float], special: Sequence[int]) -> list[int]:
    """The best token first; Python's sort leaves ties as they stand."""
    others = without(range(len(score)), special)
    return sorted(others, key=lambda token: -math.inf if math.isnan(score[token]) else score[token], reverse=True)


def split_by_rank(
    score: Sequence[float], special: Sequence[int], top: int, bottom: int
) -> tuple[list[int], list[int], list[int]]:
    """Keep, target and source positions, each in sequence order; Python's sort leaves ties as they stand."""
    ranked = rank_tokens(score, special)
    middle = len(ranked) - bottom
    return sorted([*special, *ranked[:top]]), sorted(ranked[top:middle]), sorted(ranked[middle:])


def match_nearest(
    metric: Sequence[Row],
    src: Iterable[int],
    dst: Sequence[int],
    similarity: Similarity = "cosine",
    kth: int = 1,
) -> list[int]:
    """The k-th most similar target for each source, the first of equal ones before the others."""
    last = min(kth, len(dst)) - 1
    return [
        sorted(dst, key=lambda target: _similarity(metric[source], metric[target], similarity), reverse=True)[last]  # noqa: B023 used at once
        for source in src
    ]


def pair_similarity(
    metric: Sequence[Row], a: Iterable[int], b: Iterable[int], similarity: Similarity = "cosine"
) -> list[float]:
    """Similarity of each token of ``a`` to its partner in ``b``."""
    return [_similarity(metric[x], metric[y], similarity) for x, y in zip(a, b, strict=True)]


def match_neighbors(
    metric: Sequence[Row], sequence: Sequence[int], blocked: Sequence[bool], similarity: Similarity = "cosine"
) -> tuple[list[int], list[float]]:
    """For every second token the more similar neighbour, one that is not blocked if there is one."""
    targets, values = [], []
    for place in range(0, len(sequence), 2):
        options = []
        for other in (place - 1, place + 1):
            if 0 <= other < len(sequence):
                alike = _similarity(metric[sequence[place]], metric[sequence[other]], similarity)
                options.append((-math.inf if blocked[min(place, other)] else alike, sequence[other]))
        value, target = max(options, key=lambda option: option[0])
        targets.append(target)
        values.append(value)
    return targets, values


def strongest_links(
    src: Sequence[int], target: Sequence[int], strength: Sequence[float], r: int
) -> tuple[list[int], list[int], list[int]]:
    """Sources and targets of the r strongest links, and the other sources, all by falling strength."""
    order = sorted(range(len(src)), key=lambda link: strength[link], reverse=True)
    ranked = [src[link] for link in order]
    return ranked[:r], [target[link] for link in order[:r]], ranked[r:]


def noise(count: int, seed: int, use: int = 0) -> list[int]:
    """Hashes of 0 … count − 1, begun at a hash of the arguments."""
    start = _mix((_mix((_mix(seed) + use) % 2**32) + count) % 2**32)
    return [_mix((start + number) % 2**32) for number in range(count)]


def shuffled(num_tokens: int, special: Sequence[int], share: float, seed: int, use: int = 0) -> list[int]:
    """The tokens with the least noise go, in this order, to the places that they had, from the front."""
    sequence, others = list(range(num_tokens)), without(range(num_tokens), special)
    chance = noise(len(others), seed, use)
    drawn = sorted(range(len(others)), key=chance.__getitem__)[: int(share * len(others))]
    for place, token in zip(sorted(drawn), drawn, strict=True):
        sequence[others[place]] = others[token]
    return sequence


def token_map(
    num_tokens: int,
    kept: Sequence[int],
    merged: Sequence[int] = (),
    target: Sequence[int] = (),
    *,
    ordered: bool = True,
) -> Map:
    """Number the kept tokens, and send each merged one to its target's number."""
    stay = sorted(kept) if ordered else list(kept)
    slot = [-1] * num_tokens
    for number, token in enumerate(stay):
        slot[token] = number
    for token, partner in zip(merged, target, strict=True):
        slot[token] = slot[partner]
    return Map(slot, stay, list(merged))


def exact_slots(sequence: Sequence[int], special: Iterable[int]) -> list[int]:
    """Where the special tokens stand."""
    return [sequence.index(token) for token in special]


def scaled_slots(special: Sequence[int], numerator: int, denominator: int, num_kept: int) -> list[int]:
    """Positions scaled and rounded down, moved on where taken, and back where they leave too few behind."""
    slots: list[int] = []
    for number, position in enumerate(special):
        slot = position * numerator // denominator
        slots.append(max(slot, slots[-1] + 1) if number else slot)
    return [min(slot, num_kept - len(special) + number) for number, slot in enumerate(slots)]


def middle_slots(special: Sequence[int], num_kept: int) -> list[int]:
    """As many slots before them as behind them, or one less."""
    return [(num_kept - len(special)) // 2 + number for number in range(len(special))]


def hold_special(others: Iterable[int], special: Iterable[int], slots: Iterable[int]) -> list[int]:
    """Put the special tokens in, the lowest slot first."""
    sequence = list(others)
    for slot, token in sorted(zip(slots, special, strict=True)):
        sequence.insert(slot, token)
    return sequence


def move_special(sequence: Sequence[int], special: Sequence[int], slots: Iterable[int]) -> list[int]:
    """Take them out and put them in elsewhere."""
    return hold_special(without(sequence, special), special, slots)


def merge_tokens(
    tokens: Sequence[Row], to: Map, weight: Sequence[float] | None = None, combine: Combine = "mean"
) -> list[list[float]]:
    """The weighted mean of all tokens that went to a slot, or their greatest or least values, slot by slot."""
    share = [1.0] * len(tokens) if weight is None else weight
    merged = []
    for slot, token in enumerate(to.kept):
        group = [token] + [other for other in to.merged if to.slot[other] == slot]
        columns = list(zip(*(tokens[member] for member in group), strict=True))
        if combine == "mean":
            shares = [share[member] for member in group]
            merged.append([_dot(column, shares) / sum(shares) for column in columns])
        else:
            merged.append([max(column) if combine == "max" else min(column) for column in columns])
    return merged


def merge_successively(tokens: Sequence[Row], to: Map) -> list[list[float]]:
    """Each slot's token averaged with the first that comes to it, the result with the second, and so on."""
    merged = []
    for slot, token in enumerate(to.kept):
        value = list(tokens[token])
        for other in sorted(other for other in to.merged if to.slot[other] == slot):
            value = [(x + y) / 2 for x, y in zip(value, tokens[other], strict=True)]
        merged.append(value)
    return merged


def merge_sizes(size: Sequence[float], to: Map) -> list[float]:
    """The sum of all sizes that went to a slot, slot by slot."""
    return [sum(size[token] for token, at in enumerate(to.slot) if at == slot) for slot in range(len(to.kept))]


def unmerge_tokens(tokens: Sequence[Row], to: Map, before: Sequence[Row] | None = None) -> list[Row]:
    """Each token gets what stands at its slot; a dropped one what it had, or the first slot's if unknown."""
    dropped = [tokens[0]] * len(to.slot) if before is None else before
    return [dropped[token] if slot < 0 else tokens[slot] for token, slot in enumerate(to.slot)]


def _similarity(a: Row, b: Row, similarity: Similarity) -> float:
    return {"cosine": _cosine, "l1": _minus_l1, "l2": _minus_squared_l2}[similarity](a, b)


def _mix(word: int) -> int:
    word = (word ^ (word >> 16)) * 0x7FEB352D % 2**32
    word = (word ^ (word >> 15)) * 0x3C6EF35F % 2**32
    return word ^ (word >> 16)


def _dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _norm(row: Row) -> float:
    return math.sqrt(_dot(row, row))


def _cosine(a: Row, b: Row) -> float:
    length = max(_norm(a), 1e-12) * max(_norm(b), 1e-12)  # as torch: a zero vector is like nothing
    return _dot(a, b) / length


def _minus_l1(a: Row, b: Row) -> float:
    return -sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _minus_squared_l2(a: Row, b: Row) -> float:
    return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
