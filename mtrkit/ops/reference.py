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

Row = Sequence[float]


class Map(NamedTuple):
    """A :class:`~mtrkit.types.TokenMap` of one sample, without weights."""

    slot: list[int]  # output slot of each input token, −1 for a dropped one
    kept: list[int]  # input token that stands at each slot
    merged: list[int]  # input tokens merged into another one's slot


def channel_score(signal: Iterable[Row], reduction: ChannelReduction = "mean") -> list[float]:
    """One number per token from its channels."""
    if reduction == "mean":
        return [sum(row) / len(row) for row in signal]
    if reduction == "clipped":
        return [sum(max(value, 0.0) for value in row) / len(row) for row in signal]
    return [_norm(row) for row in signal]


def class_score(features: Sequence[Row], special: Sequence[int]) -> list[float]:
    """Mean cosine similarity of each token to the special ones."""
    return [sum(_cosine(row, features[anchor]) for anchor in special) / len(special) for row in features]


def split_by_rank(
    score: Sequence[float], special: Sequence[int], top: int, bottom: int
) -> tuple[list[int], list[int], list[int]]:
    """Keep, target and source positions, each in sequence order; Python's sort leaves ties as they stand."""
    others = [token for token in range(len(score)) if token not in special]
    ranked = sorted(others, key=lambda token: -math.inf if math.isnan(score[token]) else score[token], reverse=True)
    middle = len(ranked) - bottom
    return sorted([*special, *ranked[:top]]), sorted(ranked[top:middle]), sorted(ranked[middle:])


def match_nearest(
    metric: Sequence[Row], src: Iterable[int], dst: Sequence[int], similarity: Similarity = "cosine"
) -> tuple[list[int], list[float]]:
    """The first of the most similar targets for each source, and how similar it is."""
    measure = {"cosine": _cosine, "l1": _minus_l1, "l2": _minus_squared_l2}[similarity]
    targets, values = [], []
    for source in src:
        best = max(dst, key=lambda target: measure(metric[source], metric[target]))  # noqa: B023 used at once
        targets.append(best)
        values.append(measure(metric[source], metric[best]))
    return targets, values


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


def merge_tokens(tokens: Sequence[Row], to: Map, weight: Sequence[float] | None = None) -> list[list[float]]:
    """The weighted mean of all tokens that went to a slot, slot by slot."""
    share = [1.0] * len(tokens) if weight is None else weight
    merged = []
    for slot, token in enumerate(to.kept):
        group = [token] + [other for other in to.merged if to.slot[other] == slot]
        total = sum(share[member] for member in group)
        columns = range(len(tokens[token]))
        merged.append([sum(share[member] * tokens[member][c] for member in group) / total for c in columns])
    return merged


def merge_sizes(size: Sequence[float], to: Map) -> list[float]:
    """The sum of all sizes that went to a slot, slot by slot."""
    return [sum(size[token] for token, at in enumerate(to.slot) if at == slot) for slot in range(len(to.kept))]


def unmerge_tokens(tokens: Sequence[Row], to: Map, before: Sequence[Row] | None = None) -> list[Row]:
    """Each token gets what stands at its slot; a dropped one what it had, or the first slot's if unknown."""
    dropped = [tokens[0]] * len(to.slot) if before is None else before
    return [dropped[token] if slot < 0 else tokens[slot] for token, slot in enumerate(to.slot)]


def _norm(row: Row) -> float:
    return math.sqrt(sum(value * value for value in row))


def _cosine(a: Row, b: Row) -> float:
    length = max(_norm(a), 1e-12) * max(_norm(b), 1e-12)  # as torch: a zero vector is like nothing
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def _minus_l1(a: Row, b: Row) -> float:
    return -sum(abs(x - y) for x, y in zip(a, b, strict=True))


def _minus_squared_l2(a: Row, b: Row) -> float:
    return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
