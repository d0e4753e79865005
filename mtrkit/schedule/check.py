"""Schedules that a user wrote down: are they possible, and how many tokens do they take away?"""

from collections.abc import Sequence
from itertools import pairwise

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule.cost import ModelShape


def check_schedule(tokens: Sequence[int], shape: ModelShape, max_share: float | None = None) -> list[int]:
    """Return ``tokens`` as a list if a model of this shape can follow it.

    Args:
        tokens: Tokens left after each block, special ones included. Where it shrinks, that block reduces.
        shape: The model and its input.
        max_share: Largest share of the non-special tokens that may go in one place; ``None`` for any.

    Raises:
        OptionError: ``tokens`` is not a sequence of integers.
        ScheduleError: It has the wrong length, grows, leaves fewer than special + 1 tokens, reduces after
            the last block (which pays only before its MLP), or takes more than ``max_share`` in one place.
    """
    if isinstance(tokens, str) or not isinstance(tokens, Sequence) or any(type(n) is not int for n in tokens):
        raise OptionError(f"tokens must be a list of integers, the tokens left after each block, not {tokens!r}")
    if len(tokens) != shape.depth:
        raise ScheduleError(f"tokens has one entry per block: {shape.depth} are needed, {len(tokens)} were given")
    for layer, (before, after) in enumerate(pairwise([shape.tokens, *tokens]), start=1):
        _check_step(layer, before, after, shape, max_share)
    return list(tokens)


def _check_step(layer: int, before: int, after: int, shape: ModelShape, max_share: float | None) -> None:
    if after > before:
        raise ScheduleError(f"tokens leaves {after} after block {layer} that only sees {before}; it may never grow")
    if after <= shape.special:
        raise ScheduleError(
            f"tokens leaves {after} after block {layer}, but the {shape.special} special tokens and at least "
            f"one more stay: {shape.special + 1} or more are needed"
        )
    if after < before and layer > shape.last_layer:
        raise ScheduleError(
            f"tokens shrinks from {before} to {after} after the last block, where nothing is saved; "
            "its last two entries must be equal"
        )
    if max_share is not None and before - after > (most := most_removed(before - shape.special, max_share)):
        raise ScheduleError(
            f"tokens removes {before - after} after block {layer}, but this method removes at most {most} of "
            f"the {before - shape.special} that are not special; spread the removal over more blocks"
        )


def most_removed(count: int, max_share: float) -> int:
    """The most of ``count`` non-special tokens that can go in one place; at least one stays."""
    return min(int(max_share * count), count - 1)


def check_max_share(max_share: float) -> float:
    """Return ``max_share`` if it lies in (0, 1], else raise :class:`OptionError`."""
    if isinstance(max_share, bool) or not isinstance(max_share, int | float) or not 0 < max_share <= 1:
        raise OptionError(f"max_share must be a number above 0 and up to 1, not {max_share!r}")
    return max_share


def reduction_ratio(schedule: Sequence[int], shape: ModelShape) -> float:
    """Share of tokens that the blocks do not see: 1 − mean(tokens entering a block) / L.

    This is R-MeeTo's "reduction ratio" (arXiv:2412.12496, Table 10). It counts tokens, whereas ``ratio``
    everywhere else in mtrkit counts FLOPs.
    """
    entering = [shape.tokens, *check_schedule(schedule, shape)[:-1]]
    return 1 - sum(entering) / (shape.depth * shape.tokens)
