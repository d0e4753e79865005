"""One picture per reduction: which patches were kept, targets, or left; and one of what was merged."""

import colorsys
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from mtrkit.adapters.grid import PatchGrid
from mtrkit.patch import TraceStage

Role = Literal["keep", "target", "source", "gone"]
Colour = tuple[int, int, int]

ROLE_COLOURS: dict[Role, Colour] = {
    "keep": (226, 40, 46),
    "target": (30, 100, 230),
    "source": (38, 38, 42),
    "gone": (236, 236, 238),
}
_OPACITY: dict[Role, float] = {"keep": 0.42, "target": 0.48, "source": 0.86, "gone": 0.93}


def roles(stage: TraceStage, sample: int) -> dict[int, Role]:
    """The role, in one reduction and for one image, of each position of the original sequence.

    ``"gone"`` are positions whose token left in an earlier reduction. If the method sorts its tokens into no
    groups, those that left are sources, those that received others are targets, and the rest were kept.
    """
    present = stage.present[sample].tolist()
    found: dict[int, Role] = dict.fromkeys(range(stage.slot.shape[1]), "gone")
    if stage.split is None:
        return found | _roles_from_slots(present, stage.slot[sample].tolist())
    groups: dict[Role, list[int]] = {
        "keep": stage.split.keep[sample].tolist(),
        "target": stage.split.dst[sample].tolist(),
        "source": stage.split.src[sample].tolist(),
    }
    return found | {present[index]: role for role, indices in groups.items() for index in indices}


def _roles_from_slots(present: list[int], slot: list[int]) -> dict[int, Role]:
    """Without groups, the first of several tokens in one slot counts as the target of the others."""
    found: dict[int, Role] = {}
    first: dict[int, int] = {}
    for position in present:
        token = slot[position]
        if token < 0:
            found[position] = "source"
        elif token in first:
            found[position], found[first[token]] = "source", "target"
        else:
            first[token], found[position] = position, "keep"
    return found


def draw_roles(image: Image.Image, grid: PatchGrid, role_of: dict[int, Role]) -> Image.Image:
    """Tint every patch by its role; special tokens are not in the picture."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    for patch, position in enumerate(grid.positions):
        role = role_of[position]
        left, top, right, bottom = grid.box(patch, image.size)
        tile = pixels[top:bottom, left:right]
        tile += _OPACITY[role] * (np.array(ROLE_COLOURS[role], dtype=np.float32) - tile)
    return _with_lines(Image.fromarray(pixels.round().astype(np.uint8)), grid)


def draw_groups(image: Image.Image, grid: PatchGrid, groups: list[list[int]]) -> Image.Image:
    """Fill patches that became one token with their mean colour, and outline each such group.

    A patch that is alone in its token shows the image; one that is in no token was dropped, and is black.

    Args:
        image: What the model saw, at any scale.
        grid: Where its patches are.
        groups: Per token, positions of the original sequence.
    """
    pixels = np.asarray(image.convert("RGB")).copy()
    members = [grid.patches_at(group) for group in groups]
    alive = {patch for group in members for patch in group}
    dropped = [patch for patch in range(len(grid.positions)) if patch not in alive]
    merged = [group for group in members if len(group) > 1]
    for patches, colour in [*((group, _mean(pixels, grid, group)) for group in merged), (dropped, (0, 0, 0))]:
        for patch in patches:
            left, top, right, bottom = grid.box(patch, image.size)
            pixels[top:bottom, left:right] = colour
    picture = _with_lines(Image.fromarray(pixels), grid)
    for number, group in enumerate(merged):
        _outline(picture, grid, set(group), _distinct(number))
    return picture


def _mean(pixels: np.ndarray, grid: PatchGrid, patches: list[int]) -> Colour:
    height, width = pixels.shape[:2]
    boxes = [grid.box(patch, (width, height)) for patch in patches]
    tiles = [pixels[top:bottom, left:right].reshape(-1, 3) for left, top, right, bottom in boxes]
    red, green, blue = np.concatenate(tiles).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def _with_lines(image: Image.Image, grid: PatchGrid) -> Image.Image:
    """Thin lines between patches, where patches are large enough to leave something between them."""
    if min(image.width / grid.columns, image.height / grid.rows) < 12:
        return image
    lines = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(lines)
    for patch in range(grid.rows * grid.columns):
        left, top, right, bottom = grid.box(patch, image.size)
        draw.line([(right - 1, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=(255, 255, 255, 90))
    return Image.alpha_composite(image.convert("RGBA"), lines).convert("RGB")


def _outline(image: Image.Image, grid: PatchGrid, group: set[int], colour: Colour) -> None:
    """Draw the edges where a patch of the group meets another group or the border."""
    draw = ImageDraw.Draw(image)
    thick = max(2, round(min(image.width / grid.columns, image.height / grid.rows) / 10))
    for patch in group:
        left, top, right, bottom = grid.box(patch, image.size)
        row, column = divmod(patch, grid.columns)
        inner = thick - 1
        edges = {
            (row - 1, column): (left, top, right - 1, top + inner),
            (row + 1, column): (left, bottom - 1 - inner, right - 1, bottom - 1),
            (row, column - 1): (left, top, left + inner, bottom - 1),
            (row, column + 1): (right - 1 - inner, top, right - 1, bottom - 1),
        }
        for (r, c), edge in edges.items():
            inside = 0 <= r < grid.rows and 0 <= c < grid.columns
            if not inside or r * grid.columns + c not in group:
                draw.rectangle(edge, fill=colour)


def _distinct(number: int) -> Colour:
    """Colours that differ as much as possible from the ones before: hues by the golden ratio."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.85, 0.55)[number % 2], 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
