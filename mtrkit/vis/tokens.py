"""The page of ``mtrkit draw``: what its data is."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mtrkit.adapters.grid import PatchGrid
from mtrkit.errors import InputError
from mtrkit.vis.overlay import CROSSES, HEAT, ROLE_COLOURS, ROLE_TINTS
from mtrkit.vis.page import render_page
from mtrkit.vis.passes import Answer, Cost, Pass, Shown, check_traces
from mtrkit.vis.stages import Role, StageView, frame_grids, stage_views

_LETTERS: dict[Role, str] = {"keep": "k", "target": "t", "source": "s", "dropped": "d", "gone": "g"}
_SMALL = 96  # pixels, up to which an image is embedded without loss


def tokens_page(
    inputs: Sequence[Shown],
    passes: Sequence[Pass],
    grid: PatchGrid,
    dense: Cost,
    title: str,
    about: Mapping[str, str],
    note: str = "",
) -> str:
    """Return a page, as HTML, of what reduced models do to the tokens of the same inputs.

    Args:
        inputs: In the order of the batch; all images, or all clips of as many frames.
        passes: Each traced on one forward pass over these inputs, with its cost and answers.
        grid: Where the patches are; see :func:`patch_grid`.
        dense: What the dense model costs.
        title: Of the page.
        about: Lines at its end: what the numbers are of.
        note: A sentence above the answers.

    Raises:
        InputError: A trace is empty or of other inputs, or a pass has no cost.
    """
    return render_page("tokens", title, tokens_data(inputs, passes, grid, dense, title, about, note))


def tokens_data(
    inputs: Sequence[Shown],
    passes: Sequence[Pass],
    grid: PatchGrid,
    dense: Cost,
    title: str,
    about: Mapping[str, str],
    note: str = "",
) -> dict[str, Any]:
    """The data of :func:`tokens_page`; docs/looking_inside.md says what is in it."""
    check_traces(inputs, passes)
    grids = frame_grids(grid, len(inputs[0].frames))
    return {
        "title": title,
        "about": dict(about),
        "note": note,
        "grid": {"rows": grids[0].rows, "columns": grids[0].columns, "frames": len(grids)},
        "tokens": grid.num_tokens,
        "colours": _colours(),
        "dense": _cost(dense, dense),
        "inputs": [_input(shown) for shown in inputs],
        "passes": [_pass(each, grid, grids, dense, len(inputs)) for each in passes],
    }


def _colours() -> dict[str, Any]:
    """Those of the pictures."""
    roles = {letter: {"colour": ROLE_COLOURS[role], "tint": ROLE_TINTS[role]} for role, letter in _LETTERS.items()}
    crosses = {_LETTERS[role]: colour for role, colour in CROSSES.items()}
    return {"roles": roles, "crosses": crosses, "heat": HEAT}


def _input(shown: Shown) -> dict[str, Any]:
    return {
        "name": shown.name,
        "frames": [embed(frame) for frame in shown.frames],
        "times": None if shown.times is None else list(shown.times),
        "top": _top(shown.top),
    }


def _pass(each: Pass, grid: PatchGrid, grids: Sequence[PatchGrid], dense: Cost, samples: int) -> dict[str, Any]:
    if each.cost is None:
        raise InputError(f"a page says what {each.name} costs; give its cost")
    views = [stage_views(each.trace, grid, sample) for sample in range(samples)]
    positions = [position for part in grids for position in part.positions]
    return {
        "method": each.method,
        "amount": each.amount,
        **_cost(each.cost, dense),
        "stages": [{"layer": view.layer, "before": view.before, "after": view.after} for view in views[0]],
        "inputs": [
            {
                "top": _top(each.tops[sample]) if each.tops else [],
                "stages": [_stage(view, positions) for view in views[sample]],
            }
            for sample in range(samples)
        ],
    }


def _stage(view: StageView, positions: Sequence[int]) -> dict[str, Any]:
    """Per patch, frame after frame and row by row."""
    ranks = view.ranks
    return {
        "slot": [view.slot[position] for position in positions],
        "roles": "".join(_LETTERS[view.roles[position]] for position in positions),
        "ranks": None if ranks is None else [_percent(ranks[position]) for position in positions],
    }


def _percent(rank: float) -> int:
    return -1 if rank < 0 else round(100 * rank)


def _cost(cost: Cost, dense: Cost) -> dict[str, Any]:
    return {
        "gflops": cost.gflops,
        "ratio": 1 - cost.gflops / dense.gflops,
        "promised": dense.gflops / cost.gflops,
        "images_per_second": cost.images_per_second,
        "speedup": cost.speedup,
    }


def _top(answers: Sequence[Answer]) -> list[list[Any]]:
    return [[answer.label, answer.probability] for answer in answers]


def embed(image: Image.Image) -> str:
    """An image as an address that holds it: PNG if it is small, else JPEG."""
    file = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.convert("RGB").save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    image.convert("RGB").save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
