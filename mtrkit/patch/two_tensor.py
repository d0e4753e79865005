"""A block that passes on hidden states and residual, as those of Vim do."""

from functools import partial
from typing import Any

from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.ops import (
    count_gaps,
    nothing_dropped,
    reduce_stream,
    remember_dropped,
    restore_stream,
    sum_gaps,
    with_residual,
)
from mtrkit.patch.block import PatchedBlock
from mtrkit.types import BlockEnd, ChainedReduction, Gaps, MixerCall, ReducedStream, Signals


class TwoTensorBlock(PatchedBlock):
    """``forward`` of a block that passes on hidden states and residual: the stream travels in place of the latter."""

    def __call__(self, hidden_states: Tensor, residual: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the block on the stream, reduce if this is the place, restore the sequence after the last."""
        reduced, stream = self._enter(hidden_states, residual)
        if not reduced:
            return self.hidden(hidden_states, residual, *args, **kwargs)
        call = self._asked(hidden_states, stream)
        args, kwargs = self._handed(call, args, kwargs)
        hidden, inner = self.hidden(hidden_states, residual if stream is None else stream.residual, *args, **kwargs)
        return self._follow(stream, hidden, inner, self._signals(call))

    def ahead(self, tokens: Tensor, given: Any) -> BlockEnd | None:
        """What the block does behind its mixer, for a model that runs several as one call; ``None``: call the block.

        Args:
            tokens: Of the shape that the block would be given.
            given: Beside them: what the first of these blocks is given.
        """
        if self.previous is not None or self.needs_readable:
            return None
        reduced, stream = self._enter(tokens, given)
        if not reduced:
            return BlockEnd(frozenset(), False, _as_it_is)
        call = self._asked(tokens, stream)
        if call.size is not None or call.gating is not None or call.gaps is not None:
            return None
        follow, found = partial(self._follow, stream), self._chained(tokens, stream, call)
        return BlockEnd(call.reads, self.reduces or self.last, follow, found)

    def _chained(self, tokens: Tensor, stream: ReducedStream | None, call: MixerCall) -> ChainedReduction | None:
        """All steps behind the block as jobs of a chain; ``None`` if something needs values before it runs."""
        reduction, plan = self.reduction, self.reduction.plan
        looks = reduction.observers or self.last or self.threshold is not None or plan.shape.frames > 1
        if not self.reduces or looks or reduction.chain_key is None or not call.reads <= {"delta_mean"}:
            return None
        began_with = tokens.shape[1] if stream is None else stream.slot.shape[1]
        num_kept = plan.num_kept(self.index, began_with)
        if num_kept >= tokens.shape[1] or (stream is not None and not nothing_dropped(stream.stages)):
            return None
        special, keeps_time = reduction.special_at(began_with), reduction.config.lengths == "sizes"
        return ChainedReduction(self.index + 1, num_kept, reduction.chain_key, special, keeps_time)

    def _asked(self, tokens: Tensor, stream: ReducedStream | None) -> MixerCall:
        """What is handed to the mixer, with what its scan passes over."""
        call = self._mixer_call(tokens, stream)
        call.gaps = None if stream is None else self._gaps(stream)
        return call

    def _follow(self, stream: ReducedStream | None, hidden: Tensor, inner: Tensor, signals: Signals) -> Any:
        """What the next block is given, from this one's mixer output, the sum before its norm, and the signals."""
        stream = with_residual(stream, inner)
        hidden, stream = self._end(hidden, signals, stream)
        stream = self._correct(hidden, stream)
        for recorder in self.reduction.recorders if self.last else ():
            recorder(hidden, stream)
        return restore_stream(hidden, stream) if self.restores else (hidden, stream)

    def _handed(
        self, call: MixerCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments, with the call in the one that it hands to its mixer, if the mixer has to know."""
        name = self.reduction.adapter.call_argument
        if name is None:
            return args, kwargs
        if (args and args[0] is not None) or kwargs.get(name) is not None:
            raise InputError(
                f"{name} was given, but a reduced model needs the whole sequence in one pass; call it without, or "
                "inside mtrkit.reduction_disabled(model)"
            )
        handed = {name: call} if call.says_something else {}
        return args[1:], {**kwargs, **handed}

    def _end(self, hidden: Tensor, signals: Signals, stream: ReducedStream) -> tuple[Tensor, ReducedStream]:
        """What happens to the tokens behind the block."""
        return self._reduce(hidden, signals, stream) if self.reduces else (hidden, stream)

    def _reduce(self, hidden: Tensor, signals: Signals, stream: ReducedStream) -> tuple[Tensor, ReducedStream]:
        decision = self._decide(hidden, stream.residual, signals, stream)
        if decision is None:
            return hidden, stream
        if self.reduction.config.alignment == "last" and signals.delta is not None:
            directions = self.reduction.adapter.directions
            dropped = remember_dropped(stream, decision.token_map.slot, signals.delta, directions)
            stream = stream.updated(dropped_delta=dropped)
        hidden, stream = reduce_stream(hidden, stream, decision.token_map, decision.hidden_map)
        return hidden, self._keep_time(stream)

    def _gaps(self, stream: ReducedStream) -> Gaps | None:
        """What the block's scan passes over."""
        alignment = self.reduction.config.alignment
        if alignment == "carry" or not stream.stages:
            return None
        return count_gaps(stream) if alignment == "bias" else sum_gaps(stream)


def _as_it_is(hidden: Tensor, inner: Tensor, signals: Signals) -> tuple[Tensor, Tensor]:
    del signals
    return hidden, inner
