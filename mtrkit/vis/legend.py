"""What the marks of a picture mean, each drawn as the picture draws it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mtrkit.adapters.grid import PatchGrid
from mtrkit.vis.fonts import font
from mtrkit.vis.groups import Group
from mtrkit.vis.overlay import draw_groups, draw_roles, heat
from mtrkit.vis.stages import Role, StageView

TEXTS = {
    "keep": "kept",
    "target": "kept, others are merged into it",
    "source": "merged into another one",
    "dropped": "dropped",
    "gone": "dropped earlier",
    "group": "patches of one token; the same number: the same token",
    "importance": "least to most important for the method, by rank among the tokens of patches; crossed out: dropped",
}
_LEFT, _SWATCH, _LINE, _SPACE = 16, 22, 30, 28
_INK = (28, 28, 32)


def legend_height(entries: Sequence[str], width: int) -> int:
    """Pixels that :func:`draw_legend` takes on a sheet of this width."""
    return _LINE * (1 + max(line for line, _ in _places(entries, width))) if entries else 0


def draw_legend(sheet: Image.Image, entries: Sequence[str], top: int) -> None:
    """Draw the entries, names in ``TEXTS``, in as many lines as they need."""
    draw = ImageDraw.Draw(sheet)
    for entry, (line, left) in zip(entries, _places(entries, sheet.width), strict=True):
        swatch = _swatch(entry)
        sheet.paste(swatch, (left, top + line * _LINE))
        draw.text((left + swatch.width + 8, top + line * _LINE + 3), TEXTS[entry], _INK, font(14))


def _places(entries: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Line and left end of each entry."""
    line, left, found = 0, _LEFT, []
    for entry in entries:
        needed = _swatch(entry).width + 8 + round(font(14).getlength(TEXTS[entry]))
        if left > _LEFT and left + needed > width:
            line, left = line + 1, _LEFT
        found.append((line, left))
        left += needed + _SPACE
    return found


def _swatch(entry: str) -> Image.Image:
    grey = Image.new("RGB", (_SWATCH, _SWATCH), (168, 172, 160))
    one = PatchGrid(1, 1, (0,), 1)
    if entry == "importance":
        ramp = np.stack([heat(rank) for rank in np.linspace(0, 1, 4 * _SWATCH)])
        return Image.fromarray(np.repeat(ramp[None].round().astype(np.uint8), _SWATCH, axis=0))
    if entry == "group":
        return draw_groups(grey, one, (0,), {0: Group((255, 26, 26), 1)})
    roles: dict[str, Role] = {name: name for name in ("keep", "target", "source", "dropped", "gone")}
    slot = (-1,) if entry in ("dropped", "gone") else (0,)
    return draw_roles(grey, one, StageView(0, 1, 1, slot, slot, (roles[entry],), None))
