"""Where the patches of an image are: in the sequence of tokens, and in the picture.

The picture of a clip is the strip of its frames, side by side. If a patch covers several frames, they count as one.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from mtrkit.adapters.host import find_adapter
from mtrkit.errors import UnsupportedModelError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class PatchGrid:
    """Patches in rows and columns.

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        positions: Position in the sequence of each patch, row by row; class and register tokens have none.
        num_tokens: L of the whole sequence, these included.
        frames: Of a clip, patches in the direction of time: the parts of the strip.
    """

    rows: int
    columns: int
    positions: tuple[int, ...]
    num_tokens: int
    frames: int = 1

    def box(self, patch: int, size: tuple[int, int]) -> Box:
        """Left, top, right and bottom of a patch in a picture of (width, height), the last two not included.

        Overlapping patches are shown side by side, each with an equal part of the picture.
        """
        row, column = divmod(patch, self.columns)
        (width, height), (rows, columns) = size, (self.rows, self.columns)
        return (
            round(column * width / columns),
            round(row * height / rows),
            round((column + 1) * width / columns),
            round((row + 1) * height / rows),
        )


def patch_grid(model: nn.Module, input_size: tuple[int, ...] | None = None) -> PatchGrid:
    """Find the grid of a supported model.

    Args:
        model: The model itself, no wrapper around it.
        input_size: (C, H, W), or (C, T, H, W) for the strip of a clip's frames. Default: the size the model was
            built for.

    Raises:
        UnsupportedModelError: No adapter fits, or the tokens are not one per patch, of each frame, and special ones.
    """
    adapter = find_adapter(model)
    size = input_size or adapter.input_size(model)
    shape = adapter.shape(model, size)
    if len(size) < 3 or shape.sequences > 1:
        raise UnsupportedModelError(
            f"the tokens of a {type(model).__name__} are of a text or of windows; only inputs with one token per "
            "patch have a grid"
        )
    special = set(adapter.special_at(model)(shape.tokens)) if shape.tokens > shape.patches else set()
    positions = tuple(position for position in range(shape.tokens) if position not in special)
    frames = shape.frames
    if len(positions) != shape.patches or shape.patches % frames:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {shape.tokens} tokens, of which {len(special)} special, for "
            f"{shape.patches} patches of an input {size}; only inputs with one token per patch have a grid"
        )
    rows = _rows(shape.patches // frames, size[-2] / size[-1])
    of_frames = np.array(positions).reshape(frames, rows, -1)  # models see frame after frame, a strip has rows
    strip = tuple(of_frames.transpose(1, 0, 2).flatten().tolist())
    return PatchGrid(rows, shape.patches // rows, strip, shape.tokens, frames)


def _rows(patches: int, aspect: float) -> int:
    """The number of rows whose ratio to the columns is nearest to height over width."""
    divisors = [rows for rows in range(1, patches + 1) if patches % rows == 0]
    return min(divisors, key=lambda rows: abs(rows * rows / patches / aspect - 1))
