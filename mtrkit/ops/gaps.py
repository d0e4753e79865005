"""What a scan passes over between the tokens that are left."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.ops.tensors import precise_product
from mtrkit.types import Gaps, ReducedStream


def original_positions(stream: ReducedStream) -> Tensor:
    """(B, L') original position of the token that stands at each slot."""
    batch, length = stream.slot.shape
    positions = torch.arange(length, device=stream.slot.device).expand(batch, length)
    for stage in stream.stages:
        positions = positions.gather(1, stage.token_map.kept)
    return positions


def frame_of(stream: ReducedStream, special: tuple[int, ...], frames: int) -> Tensor:
    """(B, L') int64, of a clip: in which of its frames each patch stood.

    Args:
        stream: What travels.
        special: Positions of the special tokens in the full sequence, which are of no frame and get any.
        frames: Their number; all have as many patches.
    """
    position = original_positions(stream)
    before = sum(((position > place).to(position.dtype) for place in special), torch.zeros_like(position))
    patches = (stream.slot.shape[1] - len(special)) // frames
    return (position - before).div(patches, rounding_mode="floor")


def count_gaps(stream: ReducedStream) -> Gaps:
    """How many dropped tokens lie in front of each one that is left, (B, L', 1) per direction."""
    return _between(original_positions(stream), (stream.slot < 0).to(stream.size.dtype)[..., None])


def sum_gaps(stream: ReducedStream) -> Gaps:
    """The sum of the last known Δ of the dropped tokens in front of each one, (B, L', E) per direction."""
    assert stream.dropped_delta is not None
    return _between(original_positions(stream), stream.dropped_delta)


def remember_dropped(stream: ReducedStream, slot: Tensor, delta: Tensor, directions: int = 2) -> Tensor:
    """Remember Δ of the tokens that are dropped now, at their original positions.

    Args:
        stream: Before they are dropped.
        slot: (B, L') where the tokens present go, −1 for dropped ones.
        delta: (B, L', E) their Δ, summed over the directions; each direction gets an equal share.
        directions: How many the scan has.

    Returns:
        (B, L, E), zero for tokens that are still there.
    """
    batch, length = stream.slot.shape
    passed = delta.new_zeros(batch, length, delta.shape[2]) if stream.dropped_delta is None else stream.dropped_delta
    dropped = torch.where((slot < 0)[..., None], delta / directions, 0.0)
    return passed.scatter_add(1, original_positions(stream)[..., None].expand_as(dropped), dropped)


def _between(positions: Tensor, value: Tensor) -> Gaps:
    """Sum ``value`` (B, L, C) over the positions between neighbours in ``positions`` (B, L').

    Products with a mask instead of differences of running sums, which a GPU adds up in no fixed order.
    """
    every = torch.arange(value.shape[1], device=positions.device)
    here = positions[..., None]
    before = F.pad(positions[:, :-1], (1, 0), value=-1)[..., None]
    after = F.pad(positions[:, 1:], (0, 1), value=value.shape[1])[..., None]
    return Gaps(
        precise_product(((every > before) & (every < here)).to(value.dtype), value),
        precise_product(((every > here) & (every < after)).to(value.dtype), value),
    )
