"""Move a whole residual stream through a reduction, and back to the sequence it began with."""

import torch
from torch import Tensor

from mtrkit.ops.merge import Merger, unmerge_tokens
from mtrkit.ops.rows import take
from mtrkit.types import ReducedStream, Stage, TokenMap


def open_stream(residual: Tensor) -> ReducedStream:
    """Begin with every token (B, L, D) standing for itself."""
    batch, length, _ = residual.shape
    slot = torch.arange(length, device=residual.device).expand(batch, length)
    size = torch.ones(batch, length, 1, dtype=torch.float32, device=residual.device)
    return ReducedStream(residual, size, slot, ())


def continue_stream(residual: Tensor, stream: ReducedStream) -> ReducedStream:
    """The same stream behind a block that left its tokens alone."""
    return ReducedStream(residual, stream.size, stream.slot, stream.stages, stream.passed)


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
    merger = Merger(token_map)
    reduced = ReducedStream(
        merger.tokens(stream.residual),
        merger.sizes(stream.size),
        token_map.follow(stream.slot),
        (*stream.stages, stage),
        stream.passed,
    )
    return (merger if hidden_map is None else Merger(hidden_map)).tokens(hidden), reduced


def restore_stream(hidden: Tensor, stream: ReducedStream) -> tuple[Tensor, Tensor]:
    """Undo every stage: hidden states and residual at the length the pass began with.

    A merged token's features go to all places they were merged from, a dropped one keeps its last.
    """
    residual = stream.residual
    if stream.stages and not any(stage.token_map.drops for stage in stream.stages):  # all the way at once
        return take(hidden, stream.slot), take(residual, stream.slot)
    for stage in reversed(stream.stages):
        hidden = unmerge_tokens(hidden, stage.token_map, stage.hidden)
        residual = unmerge_tokens(residual, stage.token_map, stage.residual)
    return hidden, residual


def stream_tokens(hidden: Tensor, residual: Tensor | ReducedStream) -> Tensor:
    """The features between two blocks, hidden + residual, on the full sequence whether reduced or not."""
    if isinstance(residual, ReducedStream):
        hidden, residual = restore_stream(hidden, residual)
    return hidden + residual
