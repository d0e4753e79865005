"""Stretches of blocks between which nothing has to be seen: each is one call of the compiled library.

At small batches the way from one block to the next, in Python, is a part of the time (docs/speed.md).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mtrkit.scan import BlockWeights, fused
from mtrkit.scan.fastpath import can_chain, fits_operator, runs_own_code
from mtrkit.types import BlockEnd, ReducedStream

Step = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Any]]


def run_blocks(layers: nn.ModuleList, hidden: Tensor, residual: Any, step: Step) -> tuple[Tensor, Any]:
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
    while at < len(blocks):
        found = _stretch(blocks, at, hidden, residual)
        if found is None:
            hidden, residual = step(blocks[at], hidden, residual)
            at += 1
        else:
            hidden, residual, at = found
    return hidden, residual


def _stretch(blocks: list[nn.Module], at: int, hidden: Tensor, given: Any) -> tuple[Tensor, Any, int] | None:
    """From block ``at`` on as far as one call goes, and where that ends; ``None`` if it would not begin."""
    inner = given.residual if isinstance(given, ReducedStream) else given
    if not can_chain(hidden, inner):
        return None
    weights: list[BlockWeights] = []
    end: BlockEnd | None = None
    for block in blocks[at:]:
        own = _weights_of(block)
        if own is None or not fits_operator(own.mixer, hidden):
            break
        patch = block.__dict__.get("forward")
        if patch is None:
            if isinstance(given, ReducedStream):
                break
            weights.append(own)
            continue
        found = patch.ahead(hidden, given) if hasattr(patch, "ahead") else None
        if found is None:
            break
        weights.append(own)
        end = found
        if end.changes:
            break
    if not weights:
        return None
    reads, runs = (frozenset[str](), None) if end is None else (end.reads, end.runs)
    hidden, total, signals = fused.run_blocks(hidden, inner, weights, reads, runs)
    return (*((hidden, total) if end is None else end.follow(hidden, total, signals)), at + len(weights))


def _weights_of(block: nn.Module) -> BlockWeights | None:
    own: Any = getattr(type(block), "weights", None)
    found: BlockWeights | None = own(block) if own is not None and runs_own_code(block) else None
    return found
