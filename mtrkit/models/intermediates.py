"""Which blocks' features are wanted, and tokens as feature maps."""

from collections.abc import Sequence

from torch import Tensor

from mtrkit.errors import OptionError


def pick_blocks(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Resolve ``indices`` to block numbers: ``None`` all, an int the last so many, a sequence those.

    Raises:
        OptionError: Out of range, or none at all.
    """
    if indices is None:
        return list(range(depth))
    asked = list(range(depth - indices, depth)) if isinstance(indices, int) else list(indices)
    picked = asked if isinstance(indices, int) else [depth + i if i < 0 else i for i in asked]
    if not picked or not all(0 <= i < depth for i in picked):
        raise OptionError(f"indices={indices!r} for {depth} blocks; give 1 to {depth} last ones, or their indices")
    return picked


def as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, M, D), row by row, to (B, D, rows, columns)."""
    return patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
