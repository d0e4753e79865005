"""How far a stretch of blocks goes, between which nothing has to be seen."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from mtrkit.scan import BlockWeights
from mtrkit.scan.fastpath import own_forward, runs_own_code
from mtrkit.types import BlockEnd, ReducedStream

W = TypeVar("W")


def reach(
    blocks: Sequence[nn.Module], at: int, hidden: Tensor, given: Any, look: Callable[[int, nn.Module], W | None]
) -> tuple[list[W], BlockEnd | None]:
    """The blocks from ``at`` on between which nothing has to be seen.

    Args:
        blocks: All of a model.
        at: Where the stretch begins.
        hidden: (B, L, D) in front of it.
        given: What travels beside.
        look: What is to be known of a block, from its index and itself; ``None`` if the stretch ends in front of it.

    Returns:
        What ``look`` has found of each, and what the last one does behind its mixer, if it is patched.
    """
    found: list[W] = []
    end: BlockEnd | None = None
    for index in range(at, len(blocks)):
        own, patch = look(index, blocks[index]), own_forward(blocks[index])
        behind = None if own is None or patch is None else ahead(patch, hidden, given)
        if own is None or (behind is None and (patch is not None or isinstance(given, ReducedStream))):
            break
        found.append(own)
        end = behind or end
        if end is not None and end.changes:
            break
    return found, end


def ahead(patch: Any, hidden: Tensor, given: Any) -> BlockEnd | None:
    """What a block with this ``forward`` does behind its mixer; ``None`` if it has to be called."""
    found: BlockEnd | None = patch.ahead(hidden, given) if hasattr(patch, "ahead") else None
    return found


def own_weights(block: nn.Module) -> BlockWeights | None:
    """What decides what a block does; ``None`` if it does more."""
    own: Any = getattr(type(block), "weights", None)
    found: BlockWeights | None = own(block) if own is not None and runs_own_code(block) else None
    return found
