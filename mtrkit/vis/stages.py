"""What each reduction of a traced pass did to one input: the part of every position, and how important it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtrkit.adapters.grid import PatchGrid
from mtrkit.errors import InputError
from mtrkit.patch import Trace, TraceStage

Role = Literal["keep", "target", "source", "dropped", "gone"]


@dataclass(frozen=True)
class StageView:
    """One reduction of one input, in positions of the original sequence, special tokens included.

    Attributes:
        layer: Block after which it happened, counted from 1.
        before: Tokens in front of it.
        after: Tokens behind it.
        entering: Token in front of it that each position belonged to, −1 if it had been dropped.
        slot: Token behind it that each position has become, −1 if it was dropped.
        roles: What happened to the token that each position belonged to: ``"target"``, others were merged into it;
            ``"source"``, it was merged into another; ``"dropped"``; ``"keep"``, none of these; ``"gone"``, the position
            had been dropped earlier.
        ranks: Importance of that token as the share of the tokens of patches that the method finds less important, in
            [0, 1], and −1 where there is none. ``None`` if the method has no importance.
    """

    layer: int
    before: int
    after: int
    entering: tuple[int, ...]
    slot: tuple[int, ...]
    roles: tuple[Role, ...]
    ranks: tuple[float, ...] | None


def stage_views(trace: Trace, grid: PatchGrid, sample: int) -> list[StageView]:
    """What the latest pass of a trace did to one of its inputs.

    Args:
        trace: Of one forward pass.
        grid: Where the patches are; see :func:`patch_grid`.
        sample: Index of the input in the batch.

    Raises:
        InputError: The trace is empty, or the grid is of inputs of another size.
    """
    stages = trace.latest
    if not stages:
        raise InputError("the trace holds no reduction; run a reduced model inside mtrkit.trace_reduction first")
    length = stages[0].slot.shape[1]
    if length != grid.num_tokens:
        raise InputError(f"the traced pass had {length} tokens and the grid is of {grid.num_tokens}")
    entering = [torch.arange(length), *(stage.slot[sample] for stage in stages[:-1])]
    return [_view(stage, slots, grid, sample) for stage, slots in zip(stages, entering, strict=True)]


def frame_grids(grid: PatchGrid, frames: int) -> list[PatchGrid]:
    """The grid of each frame of a clip, whose own grid is the strip of its frames; of an image, one.

    Frames that one patch covers have the same.

    Raises:
        InputError: The model has seen another number of frames.
    """
    if frames % grid.frames:
        raise InputError(f"{frames} frames were given for a model with {grid.frames} patches in the direction of time")
    width = grid.columns // grid.frames
    rows = torch.tensor(grid.positions).view(grid.rows, grid.frames, width)
    each = [tuple(rows[:, frame * grid.frames // frames].flatten().tolist()) for frame in range(frames)]
    return [PatchGrid(grid.rows, width, positions, grid.num_tokens) for positions in each]


def _view(stage: TraceStage, entering: Tensor, grid: PatchGrid, sample: int) -> StageView:
    slot = stage.slot[sample]
    tokens = entering.tolist()
    roles = _roles(slot[stage.present[sample]], stage.kept[sample])
    ranks = None if stage.score is None else _ranks(stage.score[sample], entering, grid.positions)
    return StageView(
        layer=stage.layer,
        before=len(roles),
        after=stage.num_kept,
        entering=tuple(tokens),
        slot=tuple(slot.tolist()),
        roles=tuple("gone" if token < 0 else roles[token] for token in tokens),
        ranks=None if ranks is None else tuple(-1.0 if token < 0 else ranks[token] for token in tokens),
    )


def _roles(slot: Tensor, kept: Tensor) -> list[Role]:
    """The role of each token in front of a reduction, from its place behind it (n,) and who stands there."""
    places = slot.tolist()
    met = [0] * (max(places, default=-1) + 1)
    for place in places:
        if place >= 0:
            met[place] += 1
    stays = set(kept.tolist())

    def role(token: int, place: int) -> Role:
        if place < 0:
            return "dropped"
        if token not in stays:
            return "source"
        return "target" if met[place] > 1 else "keep"

    return [role(token, place) for token, place in enumerate(places)]


def _ranks(score: Tensor, entering: Tensor, positions: Sequence[int]) -> list[float]:
    """Per token, the share of the other tokens of patches that have a lower score."""
    of_patches = entering[list(positions)]
    others = score[of_patches[of_patches >= 0].unique()].sort().values.contiguous()
    lower = torch.searchsorted(others, score.contiguous())
    return (lower / max(1, len(others) - 1)).clamp(0, 1).tolist()
