"""Move a whole residual stream through a reduction, and back to the sequence it began with."""

from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError, StreamError
from mtrkit.ops.merge import Merger, unmerge_tokens
from mtrkit.ops.tensors import take
from mtrkit.types import Correction, ReducedStream, Stage, TokenMap


def open_stream(residual: Tensor) -> ReducedStream:
    """Begin with every token (B, L, D) standing for itself."""
    batch, length, _ = residual.shape
    slot = torch.arange(length, device=residual.device).expand(batch, length)
    size = torch.ones(batch, length, 1, dtype=torch.float32, device=residual.device)
    return ReducedStream(residual, size, slot, (), torch.is_grad_enabled())


def with_residual(given: Any, residual: Tensor) -> ReducedStream:
    """What travels on with this residual (B, L, D); a stream begins here if ``given`` is none."""
    return given.updated(residual=residual) if isinstance(given, ReducedStream) else open_stream(residual)


def check_stream(hidden: Any, stream: Any, place: str = "behind the last block") -> None:
    """Raise if hidden states and stream are not as a reduced block hands them on.

    Args:
        hidden: (B, L', D), or the stream itself if it holds all there is.
        stream: What travels.
        place: Where it was met, for the message.

    Raises:
        InputError: The stream's gradients were lost. Reentrant checkpointing runs a block without recording and
            connects the tensors that it is called with; it does not see those inside of a stream.
        StreamError: Something has added tokens, or taken some away.
    """
    if not isinstance(stream, ReducedStream):
        raise InputError(
            f"{place} a {type(stream).__name__} was found in the place of a ReducedStream: it was taken apart by a "
            "checkpoint with use_reentrant=True, which loses the gradients of the residual stream, or by a hook; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False), and let hooks return stream._replace(...)"
        )
    if torch.is_grad_enabled() and not stream.records and (hidden is stream or hidden.requires_grad):
        raise InputError(
            "a reduced model's blocks were checkpointed with use_reentrant=True, which loses the gradients of the "
            "residual stream; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    expected = stream.size.shape[:2]
    shapes = [tuple(x.shape) for x in (stream.residual, hidden) if isinstance(x, Tensor)]
    if any(shape[:2] != expected for shape in shapes):
        raise StreamError(
            f"{place} tokens of shape {' and '.join(map(str, shapes))} were found where the block before has handed on "
            f"{tuple(expected)} (batch, tokens): a hook or a wrapper has added tokens or taken some away, which a "
            "reduced model cannot follow; change their values only, or call it inside mtrkit.reduction_disabled(model)"
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
    if hidden_map is None:
        hidden, residual, size = merger.stream(hidden, stream.residual, stream.size)
    else:
        hidden = Merger(hidden_map).tokens(hidden)
        residual, size = merger.tokens(stream.residual), merger.sizes(stream.size)
    return hidden, stream.updated(residual=residual, size=size, slot=slot, stages=stages)


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
    check_stream(stream, stream)
    return restore_stream(stream.residual[..., :0], stream)[1]


def restore_stream(hidden: Tensor, stream: ReducedStream) -> tuple[Tensor, Tensor]:
    """Undo every stage: hidden states and residual at the length the pass began with.

    A merged token's features go to all places they were merged from, a dropped one keeps its last.
    """
    check_stream(hidden, stream)
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


def stream_tokens(hidden: Tensor, residual: Tensor | ReducedStream, num_tokens: int | None = None) -> Tensor:
    """The features between two blocks, hidden + residual, on the full sequence whether reduced or not.

    Args:
        hidden: (B, L', D).
        residual: (B, L', D), or what travels in its place.
        num_tokens: L of the full sequence, if it is known.

    Raises:
        StreamError: The stream was lost: a residual of fewer tokens, or something else, stands in its place.
    """
    if isinstance(residual, ReducedStream):
        hidden, residual = restore_stream(hidden, residual)
    if not isinstance(residual, Tensor) or num_tokens not in (None, residual.shape[1]):
        raise StreamError(
            f"behind the last block a {type(residual).__name__} was found where it has handed on a ReducedStream, "
            "which says where every token stands: a hook or a wrapper has put something else in its place; return "
            "stream._replace(residual=...), or call the model inside mtrkit.reduction_disabled(model)"
        )
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
