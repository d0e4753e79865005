"""Where a model could reduce, and the race between these placements."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_ROUNDS = ((8, 4), (2, 3), (1, 1))  # after one part in so many of the samples, one placement in so many stays

Layers = tuple[int, ...] | None  # blocks counted from 1; None: the method's own
Measure = Callable[[Layers, int, int], Tensor]  # values of samples start … stop − 1


def placements(depth: int, last: int) -> list[Layers]:
    """Sets of two blocks and more, at equal distances from the first or second to three quarters of the depth.

    Args:
        depth: Blocks of the model.
        last: Last block that may reduce.
    """
    end = min(last, 3 * depth // 4)
    steps = sorted({1, *(max(1, depth // parts) for parts in (12, 8, 6, 4))})
    rows = [range(start, end + 1, step) for start in (1, 2) for step in steps]
    sets = [tuple(row[:count]) for row in rows for count in (2, 3, 4, 5, 6, 8)]
    return [layers for layers in dict.fromkeys(sets) if len(layers) > 1]


def race(placed: Sequence[Layers], num_samples: int, measure: Measure) -> Layers:
    """The one with the least mean: all on an eighth of the samples, the better ones on more, the first in any case."""
    values = {layers: torch.empty(0) for layers in placed}
    for stay, start, stop in _rounds(len(placed) - 1, num_samples):
        values = {layers: torch.cat([known, measure(layers, start, stop)]) for layers, known in values.items()}
        rest = sorted((layers for layers in values if layers != placed[0]), key=lambda layers: _mean(values[layers]))
        values = {layers: values[layers] for layers in (placed[0], *rest[:stay])}
    return min(values, key=lambda layers: _mean(values[layers]))


def race_length(placed: Sequence[Layers], num_samples: int) -> int:
    """How many samples the race measures in all."""
    count, total = len(placed) - 1, 0
    for stay, start, stop in _rounds(count, num_samples):
        total += (1 + count) * (stop - start)
        count = stay
    return total


def _rounds(count: int, num_samples: int) -> list[tuple[int, int, int]]:
    """(how many stay beside the first, first sample, one after the last) of each round."""
    found, start = [], 0
    for part, share in _ROUNDS:
        count, stop = -(-count // share), max(1, num_samples // part)
        found.append((count, start, stop))
        start = stop
    return found


def _mean(values: Tensor) -> float:
    return float(values.mean())
