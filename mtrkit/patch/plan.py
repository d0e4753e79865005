"""How many tokens each block keeps, for every sequence length that comes along."""

from dataclasses import dataclass, field, replace

from mtrkit.dynamo import constant_result
from mtrkit.errors import ScheduleError
from mtrkit.schedule import (
    ModelShape,
    ReductionCost,
    check_schedule,
    most_removed,
    solve_keep,
    solve_ratio,
    solve_removal,
)


@dataclass
class Plan:
    """The requested reduction, and the schedule it gives for each sequence length.

    Exactly one of ``ratio``, ``r``, ``tokens``, ``keep`` and ``thresholds`` says how much to remove. With the last it
    depends on the data, and the schedule is of the fewest tokens that may be left.

    Attributes:
        shape: Sizes of the model at the input size the plan was made for.
        layers: Blocks to reduce after, counted from 1.
        cost: FLOPs of one reduction.
        max_share: Largest share of tokens that one reduction may remove.
        ratio: Share of the forward FLOPs to remove.
        r: Tokens to remove after each of the layers.
        tokens: Tokens left after each block.
        keep: Share of the patches that each of the layers keeps.
        thresholds: Least strength of a link that leaves, for each of the layers.
        any_length: Whether inputs come in every length, so that one too short for ``ratio`` loses what it can.
    """

    shape: ModelShape
    layers: tuple[int, ...]
    cost: ReductionCost
    max_share: float
    ratio: float | None = None
    r: int | None = None
    tokens: tuple[int, ...] | None = None
    keep: float | None = None
    thresholds: tuple[float, ...] | None = None
    any_length: bool = False
    schedule: tuple[int, ...] = field(init=False)  # tokens after each block at the input size the plan was made for
    _others: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)  # the same at other lengths

    def __post_init__(self) -> None:
        self.schedule = self._solve(self.shape)

    def num_kept(self, index: int, num_tokens: int) -> int:
        """Tokens to keep after block ``index`` (from 0) in a pass that began with ``num_tokens``."""
        length = int(num_tokens)
        return (self.schedule if length == self.shape.tokens else self._schedule(length))[index]

    @constant_result  # arithmetic on lengths: a compiler takes the answer, not the search
    def _schedule(self, num_tokens: int) -> tuple[int, ...]:
        """Solve for a length the plan was not made for, once."""
        if num_tokens not in self._others:
            self._others[num_tokens] = self._replan(num_tokens)
        return self._others[num_tokens]

    def is_shortened(self, index: int, length: int) -> bool:
        """Whether so many tokens in front of block ``index`` (from 0) are those of a reduced pass, as far as is known.

        Known are the passes of all lengths that there have been; a dense pass may have any.
        """
        known = {self.shape.tokens: self.schedule, **self._others}
        if self.thresholds is not None:  # a reduced pass may have any length
            return length not in known
        return length not in known and any(schedule[index - 1] == length for schedule in known.values())

    def at(self, num_tokens: int) -> ModelShape:
        """The model's sizes for a sequence of another length."""
        class_tokens = self.shape.tokens - self.shape.patches
        return replace(self.shape, tokens=num_tokens, patches=num_tokens - class_tokens)

    def threshold(self, index: int) -> float | None:
        """That of block ``index`` (from 0); ``None`` if a fixed number of tokens leaves there, or none does."""
        return None if self.thresholds is None else self.thresholds[self.layers.index(index + 1)]

    def fewest(self, num_tokens: int) -> int:
        """Tokens that are left of ``num_tokens`` if as many leave in one place as ever may."""
        return num_tokens - max(0, most_removed(num_tokens - self.shape.special, self.max_share))

    def _emptied(self, num_tokens: int) -> tuple[int, ...]:
        """The schedule in which as many tokens leave at each of the layers as ever may."""
        left = []
        for block in range(1, self.shape.depth + 1):
            num_tokens = self.fewest(num_tokens) if block in self.layers else num_tokens
            left.append(num_tokens)
        return tuple(left)

    def _solve(self, shape: ModelShape, at_most: bool = False) -> tuple[int, ...]:
        if self.tokens is not None:
            return tuple(check_schedule(self.tokens, shape, self.max_share))
        if self.r is not None:
            return tuple(solve_removal(shape, self.layers, self.r, max_share=self.max_share))
        if self.keep is not None:
            return tuple(solve_keep(shape, self.layers, self.keep))
        if self.thresholds is not None:
            return self._emptied(shape.tokens)
        assert self.ratio is not None
        schedule = solve_ratio(
            shape, self.layers, self.ratio, reduction_cost=self.cost, max_share=self.max_share, at_most=at_most
        )
        return tuple(schedule)

    def _replan(self, num_tokens: int) -> tuple[int, ...]:
        if self.tokens is not None:
            raise ScheduleError(
                f"tokens={list(self.tokens)} was given for sequences of {self.shape.tokens} tokens, but this input "
                f"has {num_tokens}; call apply_reduction again with tokens for this input size, or with a ratio, "
                "which is recomputed for every size"
            )
        if self.any_length and num_tokens <= self.shape.special:
            return (num_tokens,) * self.shape.depth
        return self._solve(self.at(num_tokens), self.any_length)
