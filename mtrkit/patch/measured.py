"""What a reduction costs whose amount depends on the data: measured in the passes that there have been."""

import threading
from collections import Counter
from typing import Any

from mtrkit.schedule import Directions, FlopsReport, ModelShape, ReductionCost, model_flops


class Measured:
    """How many tokens each reducing block was given and has left, in all passes since the model was patched.

    Passes of several threads add to it, one at a time. A copy of the model goes on from the same numbers by itself.
    """

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers = layers
        self._steps: dict[int, Counter[tuple[int, int]]] = {layer: Counter() for layer in layers}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {"layers": self.layers, "_steps": {layer: Counter(steps) for layer, steps in self._steps.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def add(self, layer: int, samples: int, before: int, after: int) -> None:
        """Count a batch that reduced behind block ``layer``, from 1."""
        with self._lock:
            self._steps[layer][before, after] += samples

    @property
    def samples(self) -> int:
        """How many there were."""
        return self._steps[self.layers[0]].total() if self.layers else 0

    def tokens(self, shape: ModelShape) -> tuple[int, ...]:
        """Mean tokens left after each block, rounded."""
        now, left = float(shape.tokens), []
        for block in range(1, shape.depth + 1):
            if self._steps.get(block):
                now = _mean(self._steps[block], lambda before, after: after)
            left.append(round(now))
        return tuple(left)

    def flops(self, shape: ModelShape, cost: ReductionCost, directions: Directions) -> FlopsReport:
        """The mean count of a pass on one sample. Links are counted where none was strong enough, too."""
        dense = model_flops(shape, directions=directions)
        last: Counter[tuple[int, int]] = Counter({(shape.tokens, shape.tokens): 1})
        blocks, reductions, entering = [], [], []
        for block in range(1, shape.depth + 1):
            steps = Counter(self._steps.get(block)) or _unchanged(last)
            blocks.append(round(_mean(steps, lambda before, after: shape.reducing_flops(before, after, directions))))
            charged = shape.sequences * _mean(steps, cost) if self._steps.get(block) else 0
            reductions.append(round(charged))
            entering.append(round(_mean(steps, lambda before, after: before)))
            last = steps
        return FlopsReport(dense.embedding, tuple(blocks), tuple(reductions), dense.head, tuple(entering), directions)


def _unchanged(steps: "Counter[tuple[int, int]]") -> "Counter[tuple[int, int]]":
    """What a block sees, and leaves, behind one that has made these steps."""
    found: Counter[tuple[int, int]] = Counter()
    for (_, after), count in steps.items():
        found[after, after] += count
    return found


def _mean(steps: "Counter[tuple[int, int]]", value: Any) -> float:
    return sum(count * value(before, after) for (before, after), count in steps.items()) / steps.total()
