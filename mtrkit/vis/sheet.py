"""The whole picture: images, reductions and methods in rows and columns, headings and a legend."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from mtrkit.adapters.grid import PatchGrid
from mtrkit.errors import InputError
from mtrkit.patch import Trace, TraceStage
from mtrkit.vis.overlay import ROLE_COLOURS, Colour, draw_groups, draw_roles, roles

_PANEL = 224  # pixels on the shorter side, at least
_GAP, _HEADING, _CAPTION = 14, 26, 24
_INK, _PAPER = (30, 30, 34), (255, 255, 255)
_LEGEND = {"keep": "kept", "target": "target", "source": "source: leaves here", "gone": "left before"}


def draw_reduction(
    images: Sequence[Image.Image],
    trace: Trace,
    grid: PatchGrid,
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Image.Image:
    """Draw the pass that a trace recorded: the image, the roles at each reduction, and the merged groups.

    Args:
        images: What the model saw, (H, W) each, in the order of the batch.
        trace: Of one forward pass on these images.
        grid: Where the patches are; see :func:`patch_grid`.
        captions: One line under each image.
        title: One line above all.

    Returns:
        One picture with a row per image.

    Raises:
        InputError: The trace is empty or of another number of images.
    """
    if not trace.stages or len(trace.slot) != len(images):
        traced = len(trace.slot) if trace.stages else 0
        raise InputError(f"{len(images)} images, but the trace is of {traced}; trace one pass on exactly these images")
    rows = [_panels(_enlarge(image), trace, grid, sample) for sample, image in enumerate(images)]
    return _arrange(rows, _headings(trace.stages), captions or [""] * len(images), title)


def draw_methods(
    images: Sequence[Image.Image],
    traces: Mapping[str, Trace],
    grid: PatchGrid,
    captions: Sequence[str],
    title: str = "",
) -> Image.Image:
    """Draw what several methods do to the same images, side by side.

    Args:
        images: What the model saw, (H, W) each, in the order of the batch.
        traces: Method → trace of one forward pass on these images; all reduce after the same blocks.
        grid: Where the patches are; see :func:`patch_grid`.
        captions: One line per image.
        title: One line above all.

    Returns:
        One picture with a column per method; per image a row for each reduction and one for the merged groups.

    Raises:
        InputError: The methods reduce after different blocks.

    Source: figure 3 of MTR (arXiv:2507.14042).
    """
    places = {name: [stage.layer for stage in trace.stages] for name, trace in traces.items()}
    layers = next(iter(places.values()))
    if any(place != layers for place in places.values()):
        raise InputError(f"methods that stand side by side must reduce after the same blocks, not {places}")
    rows, notes = [], []
    for sample, (image, caption) in enumerate(zip(map(_enlarge, images), captions, strict=True)):
        for number, layer in enumerate(layers):
            stages = [roles(trace.stages[number], sample) for trace in traces.values()]
            rows.append([image, *(draw_roles(image, grid, role_of) for role_of in stages)])
            notes.append(f"{caption}, block {layer}")
        rows.append([image, *(draw_groups(image, grid, trace.groups(sample)) for trace in traces.values())])
        notes.append(f"{caption}, at the end")
    return _arrange(rows, ["input", *traces], notes, title)


def strip(frames: Sequence[Image.Image]) -> Image.Image:
    """The frames of a clip, of one size, side by side."""
    width, height = frames[0].size
    picture = Image.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        picture.paste(frame, (number * width, 0))
    return picture


def _panels(image: Image.Image, trace: Trace, grid: PatchGrid, sample: int) -> list[Image.Image]:
    overlays = [draw_roles(image, grid, roles(stage, sample)) for stage in trace.stages]
    return [image, *overlays, draw_groups(image, grid, trace.groups(sample))]


def _enlarge(image: Image.Image) -> Image.Image:
    """A whole number of times, so that small images keep their pixels."""
    times = max(1, -(-_PANEL // min(image.size)))
    return image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _headings(stages: Sequence[TraceStage]) -> list[str]:
    counts = [(stage.layer, stage.present.shape[1], int(stage.slot.max()) + 1) for stage in stages]
    steps = [f"block {layer}: {before} to {after} tokens" for layer, before, after in counts]
    return ["input", *steps, f"the {counts[-1][2]} tokens at the end"]


def _arrange(rows: list[list[Image.Image]], headings: list[str], captions: Sequence[str], title: str) -> Image.Image:
    width, height = rows[0][0].size
    top = _GAP + (_HEADING if title else 0) + _HEADING
    step = height + _CAPTION
    total = (_GAP + len(headings) * (width + _GAP), top + len(rows) * step + _HEADING + _GAP)
    sheet = Image.new("RGB", total, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP // 2), title, _INK, ImageFont.load_default(18))
    for column, heading in enumerate(headings):
        draw.text((_GAP + column * (width + _GAP), top - _HEADING + 6), heading, _INK, ImageFont.load_default(15))
    for row, (panels, caption) in enumerate(zip(rows, captions, strict=True)):
        for column, panel in enumerate(panels):
            sheet.paste(panel, (_GAP + column * (width + _GAP), top + row * step))
        draw.text((_GAP, top + row * step + height + 2), caption, _INK, ImageFont.load_default(14))
    _draw_legend(draw, top + len(rows) * step + 6)
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    font, left = ImageFont.load_default(15), float(_GAP)
    entries: list[tuple[Colour, str]] = [(ROLE_COLOURS[role], _LEGEND[role]) for role in ROLE_COLOURS]
    for colour, text in entries:
        draw.rectangle((left, top + 2, left + 14, top + 16), fill=colour, outline=_INK)
        draw.text((left + 22, top), text, _INK, font)
        left += 22 + draw.textlength(text, font) + 26
    draw.text((left, top), "outlined: patches merged into one token, in their mean colour", _INK, font)
