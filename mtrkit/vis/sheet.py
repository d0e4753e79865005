"""The whole picture: inputs, reductions and frames in rows, blocks in columns, headings and one legend."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw

from mtrkit.adapters.grid import PatchGrid
from mtrkit.errors import InputError
from mtrkit.vis.fonts import font
from mtrkit.vis.groups import merged_groups
from mtrkit.vis.legend import draw_legend, legend_height
from mtrkit.vis.overlay import draw_groups, draw_importance, draw_roles
from mtrkit.vis.passes import Pass, Shown, check_traces
from mtrkit.vis.stages import StageView, frame_grids, stage_views

Map = Literal["tokens", "importance"]

_PANEL, _FRAME = 320, 208  # pixels on the shorter side of an image, and of a frame of a clip
_GAP, _CAPTION, _HEADING, _TITLE = 16, 24, 30, 34
INK, PAPER = (28, 28, 32), (255, 255, 255)


class Cell(NamedTuple):
    """A panel and the line under it."""

    picture: Image.Image | None
    caption: str


class Panels(NamedTuple):
    """Panels side by side, with a line above them."""

    heading: str
    cells: list[Cell]


def draw_reduction(
    inputs: Sequence[Shown], passes: Sequence[Pass], grid: PatchGrid, map: Map = "tokens", title: str = ""
) -> Image.Image:
    """Draw what one or more reduced models did to the same inputs.

    Args:
        inputs: In the order of the batch; all images, or all clips of as many frames.
        passes: Each traced on one forward pass over these inputs.
        grid: Where the patches are; see :func:`patch_grid`.
        map: ``"tokens"``: what stays, receives, merges and is dropped, and the merged groups at the end.
            ``"importance"``: how important the method finds each token.
        title: One line above all.

    Returns:
        One picture with a row for each input and pass; of a clip, a row for each frame.

    Raises:
        InputError: A trace is empty or of other inputs, or its method has no importance.
    """
    rows = [row for frames in _rows(inputs, passes, grid, map) for row in frames]
    return _arrange(rows, _legend_of(passes, grid, map, len(inputs)), title)


def animate_reduction(
    inputs: Sequence[Shown], passes: Sequence[Pass], grid: PatchGrid, map: Map = "tokens", title: str = ""
) -> list[Image.Image]:
    """As :func:`draw_reduction`, of clips: one picture for each frame, with a row for each clip and pass."""
    blocks = _rows(inputs, passes, grid, map)
    legend = _legend_of(passes, grid, map, len(inputs))
    heads = [rows[0].heading for rows in blocks]
    return [
        _arrange([Panels(head, rows[t].cells) for head, rows in zip(heads, blocks, strict=True)], legend, title)
        for t in range(len(inputs[0].frames))
    ]


def _rows(inputs: Sequence[Shown], passes: Sequence[Pass], grid: PatchGrid, map: Map) -> list[list[Panels]]:
    """For each input and pass, the rows of its frames."""
    check_traces(inputs, passes)
    found = []
    for sample, shown in enumerate(inputs):
        for number, each in enumerate(passes):
            views = stage_views(each.trace, grid, sample)
            if map == "importance" and any(view.ranks is None for view in views):
                raise InputError(f"{each.name} has no importance of tokens to draw; choose another method, such as mtr")
            heading = _heading(shown, each, sample, first=number == 0)
            found.append(_frames(shown, views, grid, map, heading, with_input=number == 0))
    return found


def _heading(shown: Shown, each: Pass, sample: int, first: bool) -> str:
    reduced = f"{each.name}: {each.tops[sample][0]}" if each.tops else each.name
    dense = f"dense: {shown.top[0]}" if shown.top else ""
    return "   |   ".join(filter(None, (shown.name, dense, reduced) if first else (reduced,)))


def _frames(
    shown: Shown, views: Sequence[StageView], grid: PatchGrid, map: Map, heading: str, with_input: bool
) -> list[Panels]:
    grids, rows = frame_grids(grid, len(shown.frames)), []
    groups = merged_groups(grids, views[-1].slot)
    panel = _PANEL if len(grids) == 1 else _FRAME
    for t, (frame, here) in enumerate(zip(shown.frames, grids, strict=True)):
        image = _enlarge(frame, panel)
        cells = [Cell(image if with_input else None, _time(shown, t) if with_input else "")]
        if map == "importance":
            cells += [Cell(draw_importance(image, here, view), _block(view, map)) for view in views]
        else:
            cells += [Cell(draw_roles(image, here, view), _block(view, map)) for view in views]
            end = draw_groups(image, here, views[-1].slot, groups)
            cells.append(Cell(end, f"the {views[-1].after} tokens at the end"))
        rows.append(Panels(heading if t == 0 else "", cells))
    return rows


def _block(view: StageView, map: Map) -> str:
    if map == "importance":
        return f"block {view.layer}, {view.before} tokens"
    return f"block {view.layer}: {view.before} to {view.after} tokens"


def _time(shown: Shown, t: int) -> str:
    if len(shown.frames) == 1:
        return "input"
    return f"frame {t + 1}" if shown.times is None else f"frame {t + 1}, {shown.times[t]:.2f} s"


def _enlarge(image: Image.Image, panel: int) -> Image.Image:
    """To the size of a panel on the shorter side; larger images stay as they are."""
    times = panel / min(image.size)
    if times <= 1:
        return image.convert("RGB")
    size = round(image.width * times), round(image.height * times)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _legend_of(passes: Sequence[Pass], grid: PatchGrid, map: Map, samples: int) -> list[str]:
    """What the legend has to explain: an importance, or the roles that occur, and groups if tokens were merged."""
    if map == "importance":
        return ["importance"]
    views = [view for each in passes for sample in range(samples) for view in stage_views(each.trace, grid, sample)]
    occur = {view.roles[position] for view in views for position in grid.positions}
    named = [role for role in ("keep", "target", "source", "dropped", "gone") if role in occur]
    return [*named, *(["group"] if "source" in occur else [])]


def _arrange(rows: Sequence[Panels], legend: Sequence[str], title: str) -> Image.Image:
    pictures = [cell.picture for row in rows for cell in row.cells if cell.picture is not None]
    width, height = pictures[0].size
    columns = max(len(row.cells) for row in rows)
    total = _GAP + columns * (width + _GAP)
    top = _GAP + (_TITLE if title else 0)
    tall = [(_HEADING if row.heading else 0) + height + _CAPTION for row in rows]
    sheet = Image.new("RGB", (total, top + sum(tall) + legend_height(legend, total) + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        _write(draw, title, _GAP, _GAP, total, 20)
    for row, rise in zip(rows, tall, strict=True):
        if row.heading:
            _write(draw, row.heading, _GAP, top + 6, total, 17)
        below = top + (_HEADING if row.heading else 0)
        for column, (picture, caption) in enumerate(row.cells):
            left = _GAP + column * (width + _GAP)
            if picture is not None:
                sheet.paste(picture, (left, below))
            _write(draw, caption, left, below + height + 3, left + width, 14)
        top += rise
    draw_legend(sheet, legend, top + _GAP // 2)
    return sheet


def _write(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, right: int, size: int) -> None:
    """One line, shortened if it is too long."""
    letters = font(size)
    while text and left + draw.textlength(text, letters) > right:
        text = text[:-4].rstrip() + "..." if len(text) > 4 else ""
    draw.text((left, top), text, INK, letters)
