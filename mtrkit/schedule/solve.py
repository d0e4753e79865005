"""From a wanted share of FLOPs to the tokens left after each block.

Every reducing block removes the same share k of the non-special tokens it holds, rounded to the nearest token
(MTR, arXiv:2507.14042, section "grouping": one k for all layers). Two facts make a bisection over k safe:

* With n tokens, n − round(k·n) never grows with k and never falls with n, so a larger k leaves no block with
  more tokens.
* k moves every block by at most one token at a time. So FLOPs removed never rise by more than one
  token per block in one step, while they may fall by a lot where a further reduction begins to cost. Whatever
  lies between two values of k is met on the way up, and the nearer of the last two schedules is within
  half of one such step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from mtrkit.errors import OptionError, ScheduleError
from mtrkit.schedule.check import check_max_share, most_removed
from mtrkit.schedule.cost import Directions, ModelShape, ReductionCost, model_flops
from mtrkit.schedule.place import resolve_layers


class _Plan(NamedTuple):
    """Tokens left after each reducing block, and the FLOPs that this removes."""

    left: list[int]
    removed: int


class _Planner:
    """Plans for one model as a function of the share k = step / scale.

    Shares are integers over a power of two: any two places where a rounding flips lie at least 1 / (2·n²)
    apart, so this grid separates them all, and integer arithmetic rounds alike on every machine.
    """

    def __init__(
        self,
        shape: ModelShape,
        layers: tuple[int, ...],
        cost: ReductionCost,
        max_share: float,
        directions: Directions,
    ) -> None:
        self.shape, self.layers, self.cost, self.max_share = shape, layers, cost, max_share
        self.directions = directions
        self.scale = 1 << (2 * shape.tokens.bit_length() + 1)
        self.last = int(max_share * self.scale)

    def plan(self, step: int) -> _Plan:
        """What share ``step / scale`` removes; never more than ``max_share`` of all but one token."""
        special, now, left, removed = self.shape.special, self.shape.tokens, [], 0
        for layer in self.layers:
            count = now - special
            gone = min((2 * step * count + self.scale) // (2 * self.scale), int(self.max_share * (count - 1)))
            if gone:
                dense = self._block(now)
                here = dense - self.shape.reducing_flops(now, now - gone, self.directions)
                behind = (self.shape.depth - layer) * (dense - self._block(now - gone))
                removed += here + behind - self.cost(now, now - gone)
                now -= gone
            left.append(now)
        return _Plan(left, removed)

    def _block(self, num_tokens: int) -> int:
        return self.shape.block_flops(num_tokens, self.directions)

    def bracket(self, wanted: int) -> tuple[_Plan, _Plan]:
        """Neighbouring plans of which the first removes at most ``wanted`` FLOPs and the second more."""
        low, high = 0, self.last
        below, above = self.plan(low), self.plan(high)
        while high - low > 1:
            middle = (low + high) // 2
            plan = self.plan(middle)
            if plan.removed <= wanted:
                low, below = middle, plan
            else:
                high, above = middle, plan
        return below, above

    def nearest(self, wanted: int) -> _Plan:
        """The plan nearest to ``wanted``; doing nothing where reducing costs as much as it saves."""
        first = self.bracket(0)[1]  # the least that can be removed
        if 2 * wanted <= first.removed:
            return self.plan(0)
        below, above = self.bracket(wanted)
        return below if below.removed >= 0 and wanted - below.removed <= above.removed - wanted else above


def solve_ratio(
    shape: ModelShape,
    layers: Sequence[int],
    ratio: float,
    *,
    reduction_cost: ReductionCost | None,
    max_share: float = 0.5,
    directions: Directions = "one",
    at_most: bool = False,
) -> list[int]:
    """Solve the tokens per block that remove the share ``ratio`` of the forward FLOPs.

    Args:
        shape: The model and its input.
        layers: Reducing blocks, counted from 1.
        ratio: Share of the dense model's FLOPs to remove, in [0, 1), the cost of the reductions deducted.
        reduction_cost: FLOPs of one reduction; ``None`` counts reductions as free.
        max_share: Most that may go in one place: floor(max_share · (n − 1)) of n non-special tokens. With
            0.5 the sources, as many untouched tokens and one target fit into n (MTR's three groups).
        directions: Scan directions counted, see :func:`model_flops`.
        at_most: Remove what can be removed where ``ratio`` is out of reach.

    Returns:
        Tokens left after each block, special ones included, length depth. The ratio reached is never negative
        and misses the one asked by no more than half a token in each block from the first reduction on,
        merging costs of that token included; a larger ``ratio`` leaves no block with more tokens.

    Raises:
        OptionError: ``ratio``, ``layers`` or ``max_share`` is out of range.
        ScheduleError: ``ratio`` is out of reach, and not ``at_most``; the message gives the largest reachable one.
    """
    places = resolve_layers(layers, shape.depth, shape.last_layer)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise OptionError(f"ratio is the share of FLOPs to remove, a number from 0 to below 1, not {ratio!r}")
    planner = _Planner(shape, places, reduction_cost or _free, check_max_share(max_share), directions)
    if ratio == 0:
        return [shape.tokens] * shape.depth
    dense = model_flops(shape, directions=directions).total
    wanted, most = round(ratio * dense), planner.plan(planner.last).removed
    if wanted > most and not at_most:
        raise ScheduleError(_out_of_reach(ratio, most / dense, places, shape, max_share))
    return _spread(planner.nearest(min(wanted, most)).left, places, shape)


def _free(before: int, after: int) -> int:
    return 0


def _out_of_reach(ratio: float, most: float, layers: tuple[int, ...], shape: ModelShape, max_share: float) -> str:
    reach = max(0, int(most * 1e4)) / 1e4  # rounded down, so that what the message offers can be had
    where = f"reducing after blocks {list(layers)} of {shape.depth}" if layers else "reducing after no block"
    return (
        f"ratio={ratio:g} is out of reach: {where} with at most {max_share:g} of the tokens in one place "
        f"removes up to {reach:.4f} of the FLOPs. Ask for less, or give more or earlier layers"
    )


def _spread(left: list[int], layers: tuple[int, ...], shape: ModelShape) -> list[int]:
    """Tokens left after each reducing block → tokens left after each block."""
    after = dict(zip(layers, left, strict=True))
    tokens, now = [], shape.tokens
    for layer in range(1, shape.depth + 1):
        now = after.get(layer, now)
        tokens.append(now)
    return tokens


def solve_removal(shape: ModelShape, layers: Sequence[int], r: int, max_share: float = 0.5) -> list[int]:
    """Remove the same number of tokens at every reducing block, as R-MeeTo does.

    Args:
        shape: The model and its input.
        layers: Reducing blocks, counted from 1.
        r: Tokens removed at each of them.
        max_share: Where fewer are present, this share of the non-special ones goes instead, rounded down;
            0.5 with one class token is R-MeeTo's floor((L − 1) / 2).

    Returns:
        Tokens left after each block, special ones included, length depth.

    Raises:
        OptionError: ``r`` is not an integer of at least 0, or ``layers`` or ``max_share`` is out of range.

    Source: R-MeeTo (arXiv:2412.12496), Table 10.
    """
    places = resolve_layers(layers, shape.depth, shape.last_layer)
    if type(r) is not int or r < 0:
        raise OptionError(f"r is the number of tokens to remove at each layer, an integer of at least 0, not {r!r}")
    check_max_share(max_share)
    now, left = shape.tokens, []
    for _ in places:
        now -= min(r, most_removed(now - shape.special, max_share))
        left.append(now)
    return _spread(left, places, shape)


def solve_keep(shape: ModelShape, layers: Sequence[int], keep: float) -> list[int]:
    """Keep the share ``keep`` of the patches at the first layer, of the first sequence ``keep``² at the second, and on.

    Args:
        shape: The model and its input.
        layers: Reducing blocks, counted from 1.
        keep: In (0, 1]; the numbers are rounded down, and at least one patch stays.

    Returns:
        Tokens left after each block, special ones included, length depth.

    Raises:
        OptionError: ``keep`` or ``layers`` is out of range.

    Source: DyVM, arXiv:2504.04787.
    """
    places = resolve_layers(layers, shape.depth, shape.last_layer)
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise OptionError(f"keep is the share of patches that one layer keeps, a number above 0 and up to 1: {keep!r}")
    patches = shape.tokens - shape.special
    exact = (keep**stage * patches for stage in range(1, len(places) + 1))
    left = [shape.special + max(1, int(number + 1e-9)) for number in exact]  # 0.7² of 100 is 49, not 48.999…
    return _spread(left, places, shape)
