"""Stretches of blocks between which nothing has to be seen: each is one call of the compiled library.

At small batches the way from one block to the next, in Python, is a part of the time (docs/speed.md). So what was found
of a block is kept for as long as the block is the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrkit.models.chained import ChainedPass, inner
from mtrkit.models.reach import own_weights, reach
from mtrkit.models.recorded import record
from mtrkit.models.unchanged import Unchanged
from mtrkit.scan import BlockWeights, PlacedBlock, place_block
from mtrkit.scan.fastpath import can_chain, fits_operator

Step = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]


class _Known(NamedTuple):
    """What was found of a block; ``placed`` if it can be kept, as no weight had to be converted."""

    block: nn.Module
    unchanged: Unchanged
    weights: BlockWeights
    placed: PlacedBlock | None


class Stretches:
    """Runs a model's blocks, and keeps what was found of each for as long as it is the same."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model has its own blocks."""
        return Stretches, ()

    def run(self, layers: nn.ModuleList, hidden: Tensor, residual: Any, step: Step) -> tuple[Tensor, Any]:
        """Take tokens through all blocks.

        Args:
            layers: Blocks that return hidden states and residual.
            hidden: (B, L, D).
            residual: ``None`` at the beginning.
            step: Calls one block, if it does not go in a stretch.

        Returns:
            Hidden states and residual, or what travels in its place, behind the last block.
        """
        blocks, at = [*layers], 0
        compiles = torch.compiler.is_compiling()
        if not compiles and len(self._known) > len(blocks):  # some have been taken out, and are not to be held
            self._known.clear()
        while at < len(blocks):
            found = (record if compiles else self._chain)(blocks, at, hidden, residual)
            if found is None:
                hidden, residual = step(blocks[at], hidden, residual)
                at += 1
            else:
                hidden, residual, at = found
        return hidden, residual

    def _chain(self, blocks: list[nn.Module], at: int, hidden: Tensor, given: Any) -> tuple[Tensor, Any, int] | None:
        """From block ``at`` on as far as one call goes, and where that ends; ``None`` if it would not begin."""
        if not can_chain(hidden, inner(given)):
            return None
        passing, begin, dtype = ChainedPass(hidden, given), at, hidden.dtype
        while at < len(blocks):
            weights, end = reach(blocks, at, passing.hidden, passing.given, partial(self._placed, dtype=dtype))
            if not weights:
                break
            at += len(weights)
            if end is None:
                passing.append_blocks(weights)
                return *passing.run_to_mixer()[:2], at
            passing.append_blocks(weights, end.reads)
            if end.reduction is None:
                return *end.follow(*passing.run_to_mixer()), at
            passing.append_reduction(end.reduction)
        return None if at == begin else (*passing.run(), at)

    def _placed(self, index: int, block: nn.Module, *, dtype: torch.dtype) -> PlacedBlock | None:
        """What the library needs of a block that does nothing else; ``None`` if it does, or not in this dtype."""
        known = self._known.pop(index, None)
        if known is None or known.block is not block or not known.unchanged.holds():
            known = _look_at(block)
        if known is None or not fits_operator(known.weights.mixer, dtype):
            return None
        placed = known.placed
        if placed is None:
            placed = place_block(known.weights, dtype)
            if placed.norm is known.weights.norm and not placed.mixer.made:
                known = known._replace(placed=placed)
        self._known[index] = known
        return placed


def _look_at(block: nn.Module) -> _Known | None:
    """What can be kept of a block that does nothing else."""
    found = own_weights(block)
    return None if found is None else _Known(block, Unchanged(block), found, None)
