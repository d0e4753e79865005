"""Where the class token stands, and position tables for other image sizes.

A table has one row per token. The class token's row is at the class token's own place, so it moves when the
number of patches changes; row 0 belongs to it only if it stands in front.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops import columns_without

ClassToken = Literal["middle", "front", "none"]
Grid = tuple[int, int]


def class_index(place: ClassToken, num_patches: int) -> int | None:
    """Index of the class token among M patches: M // 2 in the middle, 0 in front, ``None`` without one."""
    if place == "none":
        return None
    return num_patches // 2 if place == "middle" else 0


def insert_at(x: Tensor, row: Tensor, index: int) -> Tensor:
    """Put ``row`` (B, 1, D) into x (B, M, D) so that it becomes token ``index`` of (B, M + 1, D)."""
    return torch.cat([x[:, :index], row, x[:, index:]], dim=1)


def grid_of(size: Grid, patch: Grid, stride: Grid) -> Grid:
    """Rows and columns of the patches of an image of this size."""
    return (size[0] - patch[0]) // stride[0] + 1, (size[1] - patch[1]) // stride[1] + 1


def square_grid(num_patches: int) -> Grid | None:
    """The square grid with so many patches, or ``None`` if there is none."""
    side = math.isqrt(max(num_patches, 0))
    return (side, side) if side > 0 and side * side == num_patches else None


def resize_frames(table: Tensor, steps: int) -> Tensor:
    """Interpolate positions in time (1, T, D) linearly to (1, steps, D), in the dtype of ``table``."""
    if table.shape[1] == steps:
        return table
    return (
        F.interpolate(table.float().transpose(1, 2), steps, mode="linear").transpose(1, 2).to(table.dtype).contiguous()
    )


def resize_positions(table: Tensor, old: Grid, new: Grid, place: ClassToken) -> Tensor:
    """Interpolate a position table to another grid of patches.

    The class row is set aside, the grid resized (bicubic, antialiased), and the class row put back at the
    place that it has among the new patches.

    Args:
        table: (1, M, D), with one row more if there is a class token.
        old: Rows and columns of the grid that the table was made for.
        new: Rows and columns wanted. Equal to ``old``: the table is returned as it is.
        place: Where the class token stands.

    Returns:
        The table for ``new``, in the dtype of ``table``.
    """
    if old == new:
        return table
    index = class_index(place, old[0] * old[1])
    patches = table if index is None else columns_without(table, (index,))
    image = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=True)
    patches = image.flatten(2).transpose(1, 2).to(table.dtype)
    place_now = class_index(place, new[0] * new[1])
    if index is None or place_now is None:
        return patches.contiguous()
    return insert_at(patches, table[:, index : index + 1], place_now)
