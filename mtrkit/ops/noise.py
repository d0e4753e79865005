"""Deterministic pseudo-random numbers, hashed from positions.

They need no generator: results do not depend on what ran before, a compiler sees plain integer arithmetic, and CPU
and GPU agree. All samples of a batch get the same numbers; several seeds show the spread.
"""

from typing import TypeVar

import torch
from torch import Tensor

from mtrkit.ops.group import without
from mtrkit.ops.reorder import hold_special

_WORD = 0xFFFFFFFF
Word = TypeVar("Word", int, Tensor)


def noise(count: int, seed: int, use: int = 0, device: torch.device | str | None = None) -> Tensor:
    """``count`` different integers (count,) from 0 to 2³² − 1 that look random.

    Another ``count``, ``seed`` or ``use`` gives unrelated numbers.

    Args:
        count: How many, up to 2³².
        seed: From 0 to 2³² − 1.
        use: Tells apart several draws that belong to one seed.
        device: Where.
    """
    start = _mix(_mix(_mix(seed) + use & _WORD) + count & _WORD)
    return _mix(torch.arange(count, device=device) + start & _WORD)


def permutation(count: int, seed: int, use: int = 0, device: torch.device | str | None = None) -> Tensor:
    """0 … count − 1 in a random order, (count,); arguments as in :func:`noise`."""
    return torch.sort(noise(count, seed, use, device), stable=True).indices


def shuffled(sequence: Tensor, special: Tensor, share: float, seed: int, use: int = 0) -> Tensor:
    """Exchange a share of the tokens among each other at random; the others stand still.

    Args:
        sequence: (B, L), positions 0 … L − 1 in order.
        special: (B, S) positions of the special tokens, which stand still too.
        share: Of the other tokens, from 0 to 1; their number is rounded down.
        seed: See :func:`noise`.
        use: See :func:`noise`.
    """
    others = without(sequence, special)
    drawn = permutation(others.shape[1], seed, use, sequence.device)[: int(share * others.shape[1])]
    order = torch.arange(others.shape[1], device=sequence.device).scatter(0, torch.sort(drawn).values, drawn)
    return hold_special(others[:, order], special, special)


def _mix(word: Word) -> Word:
    """Scramble 32-bit words, one to one; factors below 2³¹ keep the products within 63 bits."""
    word = (word ^ word >> 16) * 0x7FEB352D & _WORD
    word = (word ^ word >> 15) * 0x3C6EF35F & _WORD
    return word ^ word >> 16
