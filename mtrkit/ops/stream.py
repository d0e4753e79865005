"""Move a whole residual stream through a reduction, and back to the sequence it began with."""

from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.ops.merge import Merger, unmerge_tokens
from mtrkit.ops.tensors import take
from mtrkit.types import Correction, ReducedStream, Stage, TokenMap


def open_stream(residual: Tensor) -> ReducedStream:
    """Begin with every token (B, L, D) standing for itself."""
    batch, length, _ = residual.shape
    slot = torch.arange(length, device=residual.device).expand(batch, length)
    size = torch.ones(batch, length, 1, dtype=torch.float32, device=residual.device)
    return ReducedStream(residual, size, slot, (), torch.is_grad_enabled())


def check_gradients(hidden: Any, stream: Any) -> None:
    """Raise :class:`InputError` if the stream's gradients were lost on the way to the block that is to go on.

    Reentrant checkpointing runs a block without recording and connects the tensors that it is called with; it does
    not see those inside of a stream.
    """
    whole = isinstance(stream, ReducedStream)
    if whole and (stream.records or not torch.is_grad_enabled()):
        return
    if not whole or isinstance(hidden, ReducedStream) or hidden.requires_grad:
        raise InputError(
            "a reduced model's blocks were checkpointed with use_reentrant=True, which loses the gradients of the "
            "residual stream; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


def reduce_stream(
    hidden: Tensor, stream: ReducedStream, token_map: TokenMap, hidden_map: TokenMap | None = None
) -> tuple[Tensor, ReducedStream]:
    """Apply one map to hidden states (B, L, D), residual and sizes alike.

    Args:
        hidden: (B, L, D).
        stream: What travels beside it.
        token_map: Where the tokens go.
        hidden_map: What is merged in the hidden states instead, onto the same kept tokens. The way back is
            that of ``token_map`` for all.
    """
    stage = Stage(token_map, hidden, stream.residual) if token_map.drops else Stage(token_map, None, None)
    merger, stages = Merger(token_map), (*stream.stages, stage)
    slot = token_map.slot.gather(1, stream.slot) if nothing_dropped(stages) else token_map.follow(stream.slot)
    residual, size = merger.tokens(stream.residual), merger.sizes(stream.size)
    reduced = stream.updated(residual=residual, size=size, slot=slot, stages=stages)
    return (merger if hidden_map is None else Merger(hidden_map)).tokens(hidden), reduced


def reduce_sum(
    hidden: Tensor,
    residual: Tensor | None,
    stream: ReducedStream,
    token_map: TokenMap,
    hidden_map: TokenMap | None = None,
) -> ReducedStream:
    """:func:`reduce_stream` if the stream holds the sum of both: each goes by its own map, then they are added.

    Args:
        hidden: (B, L, D).
        residual: (B, L, D); the stream's tokens are ``residual + hidden``, or ``hidden`` alone if it is ``None``.
        stream: What travels.
        token_map: Where the tokens go.
        hidden_map: As in :func:`reduce_stream`.
    """
    if residual is None:
        return reduce_stream(hidden[..., :0], stream, token_map)[1]
    hidden, reduced = reduce_stream(hidden, stream.updated(residual=residual), token_map, hidden_map)
    total = stream.residual
    stage = Stage(token_map, total[..., :0], total) if token_map.drops else Stage(token_map, None, None)
    return reduced.updated(residual=reduced.residual + hidden, stages=(*stream.stages, stage))


def restore_sum(stream: ReducedStream) -> Tensor:
    """:func:`restore_stream` for a stream that holds all there is: its tokens (B, L, D) at the length it began with."""
    check_gradients(stream, stream)
    return restore_stream(stream.residual[..., :0], stream)[1]


def restore_stream(hidden: Tensor, stream: ReducedStream) -> tuple[Tensor, Tensor]:
    """Undo every stage: hidden states and residual at the length the pass began with.

    A merged token's features go to all places they were merged from, a dropped one keeps its last.
    """
    check_gradients(hidden, stream)
    residual = stream.residual
    if stream.stages and nothing_dropped(stream.stages):  # all the way at once
        return take(hidden, stream.slot), take(residual, stream.slot)
    for stage in reversed(stream.stages):
        hidden = unmerge_tokens(hidden, stage.token_map, stage.hidden)
        residual = unmerge_tokens(residual, stage.token_map, stage.residual)
    return hidden, residual


def nothing_dropped(stages: tuple[Stage, ...]) -> bool:
    """Whether every token of the first sequence has a slot in the last; known from the shapes alone."""
    return not any(stage.token_map.drops for stage in stages)


def stream_tokens(hidden: Tensor, residual: Tensor | ReducedStream) -> Tensor:
    """The features between two blocks, hidden + residual, on the full sequence whether reduced or not."""
    if isinstance(residual, ReducedStream):
        hidden, residual = restore_stream(hidden, residual)
    return hidden + residual


def correct_stream(
    hidden: Tensor | None, stream: ReducedStream, correction: Correction, slots: Tensor
) -> ReducedStream:
    """The stream after the last block, with the correction of its features added to the residual.

    Args:
        hidden: (B, L', D), the other half of the features; ``None`` if the residual is all of them.
        stream: What travels.
        correction: Of the features.
        slots: (B, S): the tokens to correct, those that a head reads; all tokens if S is 0.
    """
    features = stream.residual if hidden is None else stream.residual + hidden
    if not slots.shape[1]:
        return stream.updated(residual=stream.residual + correction.of(features))
    corrected = take(stream.residual, slots) + correction.of(take(features, slots))
    places = slots[:, :, None].expand_as(corrected)
    return stream.updated(residual=stream.residual.scatter(1, places, corrected))
