"""One panel: an image with what a reduction did to its patches, light enough that the image stays visible."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from mtrkit.adapters.grid import PatchGrid
from mtrkit.vis.fonts import font
from mtrkit.vis.groups import Colour, Group, merged_groups, neighbours, patches_by_token, pieces
from mtrkit.vis.stages import Role, StageView

ROLE_COLOURS: dict[Role, Colour | None] = {  # told apart by the colour-blind too; None: no colour
    "keep": None,
    "target": (20, 115, 230),
    "source": (230, 130, 0),
    "dropped": (70, 70, 74),
    "gone": (214, 214, 218),
}
ROLE_TINTS: dict[Role, float] = {"keep": 0.0, "target": 0.22, "source": 0.3, "dropped": 0.5, "gone": 0.62}
CROSSES: dict[Role, Colour] = {"dropped": (20, 20, 22), "gone": (110, 110, 116)}
HEAT: list[Colour] = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
_HEAT_TINT = 0.55


def draw_roles(image: Image.Image, grid: PatchGrid, view: StageView) -> Image.Image:
    """Show what happened to the token of each patch: outlines and light tints, a cross on what was dropped.

    Args:
        image: What the model saw, at any scale.
        grid: Where its patches are; of a clip, that of this frame.
        view: The reduction.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    roles = [view.roles[position] for position in grid.positions]
    for patch, role in enumerate(roles):
        colour = ROLE_COLOURS[role]
        if colour is not None:
            tile = _tile(pixels, grid, patch)
            tile += ROLE_TINTS[role] * (np.array(colour, dtype=np.float32) - tile)
    picture = _draw_borders(_as_image(pixels), grid, view.entering)
    for patches in patches_by_token(grid, view.entering).values():
        role = roles[min(patches)]
        colour = ROLE_COLOURS[role]
        if role in ("source", "target") and colour is not None:
            _outline(picture, grid, patches, colour)
    for role in ("dropped", "gone"):
        _cross_out(picture, grid, [patch for patch, other in enumerate(roles) if other == role], role)
    return picture


def draw_importance(image: Image.Image, grid: PatchGrid, view: StageView) -> Image.Image:
    """Tint every patch by the rank of its token's importance: dark is the least important one, yellow the most.

    Args:
        image: What the model saw, at any scale.
        grid: Where its patches are; of a clip, that of this frame.
        view: The reduction, by a method that has an importance.
    """
    assert view.ranks is not None
    pixels = np.asarray(image.convert("L").convert("RGB")).astype(np.float32)
    gone = []
    for patch, position in enumerate(grid.positions):
        rank, tile = view.ranks[position], _tile(pixels, grid, patch)
        if rank < 0:
            gone.append(patch)
        colour = np.array(ROLE_COLOURS["gone"], dtype=np.float32) if rank < 0 else heat(rank)
        tile += (ROLE_TINTS["gone"] if rank < 0 else _HEAT_TINT) * (colour - tile)
    picture = _as_image(pixels)
    _cross_out(picture, grid, gone, "gone")
    return picture


def draw_groups(
    image: Image.Image, grid: PatchGrid, slot: Sequence[int], groups: Mapping[int, Group] | None = None
) -> Image.Image:
    """Outline the patches that became one token; a number finds them if they are not all side by side.

    A patch that is alone in its token shows the image; one that is in no token was dropped, and is crossed out.

    Args:
        image: What the model saw, at any scale.
        grid: Where its patches are; of a clip, that of this frame.
        slot: Token of each position of the original sequence, −1 if it was dropped.
        groups: Of a clip, what :func:`merged_groups` returned for all of its frames. Default: that of this image.
    """
    groups = merged_groups([grid], slot) if groups is None else groups
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    dropped = [patch for patch, position in enumerate(grid.positions) if slot[position] < 0]
    for patch in dropped:
        tile = _tile(pixels, grid, patch)
        tile += ROLE_TINTS["gone"] * (np.array(ROLE_COLOURS["gone"], dtype=np.float32) - tile)
    picture = _draw_borders(_as_image(pixels), grid, slot)
    _cross_out(picture, grid, dropped, "gone")
    for token, members in patches_by_token(grid, slot).items():
        if token not in groups:
            continue
        _outline(picture, grid, members, groups[token].colour)
        number = groups[token].number
        for piece in pieces(members, grid) if number is not None else ():
            _write_number(picture, grid, min(piece), str(number))
    return picture


def heat(rank: float) -> np.ndarray:
    """The colour (3,) of a rank in [0, 1], even to the eye from dark violet to yellow."""
    place = rank * (len(HEAT) - 1)
    low = min(int(place), len(HEAT) - 2)
    start, stop = np.array(HEAT[low : low + 2], dtype=np.float32)
    return start + (place - low) * (stop - start)


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _tile(pixels: np.ndarray, grid: PatchGrid, patch: int) -> np.ndarray:
    """The pixels (height, width, 3) of one patch, to be changed in place."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = grid.box(patch, (width, height))
    return pixels[top:bottom, left:right]


def _side(image: Image.Image, grid: PatchGrid) -> float:
    """The shorter side of a patch in pixels."""
    return min(image.width / grid.columns, image.height / grid.rows)


def _draw_borders(image: Image.Image, grid: PatchGrid, slot: Sequence[int]) -> Image.Image:
    """Thin lines between patches of different tokens, if patches are large enough to leave something between them."""
    if _side(image, grid) < 12:
        return image
    lines = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(lines)
    for patch in range(grid.rows * grid.columns):
        left, top, right, bottom = grid.box(patch, image.size)
        token = slot[grid.positions[patch]]
        beside = {side: slot[grid.positions[other]] for side, other in neighbours(patch, grid).items()}
        if "right" in beside and (token < 0 or beside["right"] != token):
            draw.line([(right - 1, top), (right - 1, bottom - 1)], fill=(255, 255, 255, 80))
        if "bottom" in beside and (token < 0 or beside["bottom"] != token):
            draw.line([(left, bottom - 1), (right - 1, bottom - 1)], fill=(255, 255, 255, 80))
    return Image.alpha_composite(image.convert("RGBA"), lines).convert("RGB")


def _outline(image: Image.Image, grid: PatchGrid, patches: Collection[int], colour: Colour) -> None:
    """Draw the edges at which one of the patches meets another token or the border, inside of the patch."""
    draw, thick = ImageDraw.Draw(image), max(2, round(_side(image, grid) / 11))
    for patch in patches:
        left, top, right, bottom = grid.box(patch, image.size)
        edges = {
            "top": (left, top, right - 1, top + thick - 1),
            "bottom": (left, bottom - thick, right - 1, bottom - 1),
            "left": (left, top, left + thick - 1, bottom - 1),
            "right": (right - thick, top, right - 1, bottom - 1),
        }
        beside = neighbours(patch, grid)
        for side, edge in edges.items():
            if beside.get(side) not in patches:
                draw.rectangle(edge, fill=colour)


def _cross_out(image: Image.Image, grid: PatchGrid, patches: Sequence[int], role: Role) -> None:
    """A diagonal cross over each patch."""
    colour = CROSSES[role]
    draw, width = ImageDraw.Draw(image), max(1, round(_side(image, grid) / 14))
    for patch in patches:
        left, top, right, bottom = grid.box(patch, image.size)
        inset = max(1, round((right - left) / 5))
        corners = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        draw.line([(corners[0], corners[1]), (corners[2], corners[3])], colour, width)
        draw.line([(corners[0], corners[3]), (corners[2], corners[1])], colour, width)


def _write_number(image: Image.Image, grid: PatchGrid, patch: int, number: str) -> None:
    """A number in the middle of a patch, if it is large enough to be read."""
    side = _side(image, grid)
    if side < 12:
        return
    left, top, right, bottom = grid.box(patch, image.size)
    ImageDraw.Draw(image).text(
        ((left + right) / 2, (top + bottom) / 2),
        number,
        (255, 255, 255),
        font(max(8, min(round(side * 0.5), 16))),
        anchor="mm",
        stroke_width=1,
        stroke_fill=(0, 0, 0),
    )
