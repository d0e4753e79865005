"""Which patches are one token, which of them touch each other, and how a token is marked so that the eye finds them."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from mtrkit.adapters.grid import PatchGrid

Colour = tuple[int, int, int]


class Group(NamedTuple):
    """How the patches of one token are marked."""

    colour: Colour
    number: int | None  # to be found by, if the patches are not all side by side


def merged_groups(grids: Sequence[PatchGrid], slot: Sequence[int]) -> dict[int, Group]:
    """Token → how its patches are marked, for each token that has several.

    Args:
        grids: Where the patches are; of a clip, one per frame.
        slot: Token of each position of the original sequence, −1 if it was dropped.
    """
    members: dict[int, int] = {}
    parts: dict[int, int] = {}
    for grid in grids:
        for token, patches in patches_by_token(grid, slot).items():
            members[token] = members.get(token, 0) + len(patches)
            parts[token] = parts.get(token, 0) + len(pieces(patches, grid))
    merged = sorted(token for token, count in members.items() if count > 1)
    scattered = [token for token in merged if parts[token] > 1]
    numbers = {token: number for number, token in enumerate(scattered, start=1)}
    return {token: Group(_distinct(index), numbers.get(token)) for index, token in enumerate(merged)}


def patches_by_token(grid: PatchGrid, slot: Sequence[int]) -> dict[int, set[int]]:
    """Token → its patches, numbered row by row; dropped patches are left out."""
    found: dict[int, set[int]] = {}
    for patch, position in enumerate(grid.positions):
        if slot[position] >= 0:
            found.setdefault(slot[position], set()).add(patch)
    return found


def pieces(patches: set[int], grid: PatchGrid) -> list[set[int]]:
    """The patches by whether they touch each other, in the order of their first patch."""
    left, found = set(patches), []
    while left:
        piece, waiting = set(), [min(left)]
        while waiting:
            patch = waiting.pop()
            if patch in left:
                left.remove(patch)
                piece.add(patch)
                waiting += neighbours(patch, grid).values()
        found.append(piece)
    return found


def neighbours(patch: int, grid: PatchGrid) -> dict[str, int]:
    """Side → the patch that lies there."""
    row, column = divmod(patch, grid.columns)
    found = {}
    if row:
        found["top"] = patch - grid.columns
    if row < grid.rows - 1:
        found["bottom"] = patch + grid.columns
    if column:
        found["left"] = patch - 1
    if column < grid.columns - 1:
        found["right"] = patch + 1
    return found


def _distinct(number: int) -> Colour:
    """Colours that differ as much as possible from the ones before: hues by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.9, 0.55)[number % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
