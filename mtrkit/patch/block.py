"""What all reduced blocks have in common: whether a pass is reduced, what the mixer is asked, where the tokens go.

Blocks from the first reducing one on get a ``forward`` of their own, as do the mixers of other packages whose
signals the method reads. What a pass has to remember travels in its return values (see
:class:`~mtrkit.types.ReducedStream`) and arguments (:class:`~mtrkit.types.MixerCall`); nothing is written to a module
during a pass. The first reducing block decides whether the pass is reduced: the others follow what they are given.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrkit.dynamo import refuse_proxy
from mtrkit.errors import InputError, StreamError, UnsupportedModelError
from mtrkit.ops import check_stream, columns, correct_stream, count_lengths, frame_of
from mtrkit.patch.mixers import is_readable
from mtrkit.patch.patched import Patched
from mtrkit.patch.reduction import Reduction
from mtrkit.scan import can_look
from mtrkit.types import BlockState, Decision, Limit, MixerCall, ReducedStream, Signals


class PatchedBlock(Patched):
    """``forward`` of a block of a reduced model; what it passes on is the subclasses' affair."""

    def __init__(self, block: nn.Module, index: int, reduction: Reduction) -> None:
        super().__init__(block)
        self.index, self.reduction = index, reduction
        plan, adapter, config = reduction.plan, reduction.adapter, reduction.config
        self.reduces = index + 1 in plan.layers
        self.reduces_inside = self.reduces and config.place == "before_mlp"
        self.opens = index + 1 == reduction.first
        self.last = last = index + 1 == plan.shape.depth
        self.restores = last and not adapter.restores_itself
        self.correction = reduction.correction if last else None
        self.weighs = config.proportional_attention and not self.opens
        self.threshold = plan.threshold(index) if self.reduces else None
        self.reads = config.reads if self.reduces else frozenset()
        self.needs_readable = not adapter.reads_itself and self._is_read()
        # The adapter's code runs a single-stream block that has to stop, or to hand something over, on the way.
        self.repeats = adapter.single_stream and self.needs_readable

    def _is_read(self) -> bool:
        """Whether the block's mixer has to give its signals, or to mind what was dropped or merged before."""
        adapter = self.reduction.adapter
        config, later = self.reduction.config, self.index + 1 > self.reduction.first
        aligned = later and (config.alignment != "carry" or config.lengths != "one")
        called = self.reduces_inside or (self.reduces and adapter.splits)
        return aligned or called or self.weighs or bool(self.reads)

    def extra_repr(self) -> str:
        """What printing the model shows for this block."""
        schedule, before = self.reduction.plan.schedule, self.reduction.plan.shape.tokens
        before = schedule[self.index - 1] if self.index else before
        change = f", {before}→{schedule[self.index]} tokens" if self.reduces else f", {before} tokens"
        return f"reduction={self.reduction.method.name}{change}"

    def _enter(self, tokens: Any, given: Any) -> tuple[bool, ReducedStream | None]:
        """Whether this pass is reduced here, and the stream if ``given`` is one, beside or in place of ``tokens``."""
        if isinstance(given, tuple):  # a plain one is a stream that came out of a reentrant checkpoint
            check_stream(tokens, given, f"in front of block {self.index + 1}")
            if self.reduction.removed:
                raise UnsupportedModelError(
                    f"the `forward` of block {self.index + 1} is that of an earlier mtrkit.apply_reduction, which was "
                    "replaced or removed since; call mtrkit.apply_reduction again"
                )
            return True, cast(ReducedStream, given)
        if not self.reduction.active:
            return False, None
        self.reduction.check_model()
        if not torch.compiler.is_compiling():
            refuse_proxy(tokens)
        if not self.opens:
            self._check_dense(tokens, given)
        return self.opens, None

    def _check_dense(self, tokens: Any, given: Any) -> None:
        """Raise :class:`StreamError` if a reduced pass has come here without its stream and would go on as if dense."""
        plain = given is None or isinstance(given, Tensor)
        if not plain or self.reduction.plan.is_shortened(self.index, tokens.shape[1]):
            raise StreamError(
                f"block {self.index + 1} was given a {type(given).__name__} where the block before has handed on a "
                "ReducedStream, which says where every token stands: a hook or a wrapper has put something else in its "
                "place; return stream._replace(residual=...), or call the model inside mtrkit.reduction_disabled(model)"
            )

    def _mixer_call(self, tokens: Tensor, stream: ReducedStream | None) -> MixerCall:
        """What is handed to the mixer, which has to be one that was patched if it is to read the call."""
        del tokens
        if self.needs_readable and not is_readable(self.reduction.adapter.mixer(self.module)):
            raise UnsupportedModelError(
                f"the mixer of block {self.index + 1} was replaced since the model was patched; call "
                "mtrkit.apply_reduction again"
            )
        merged = self.weighs and stream is not None and bool(stream.stages)
        runs, size = (None, None) if stream is None else (stream.runs(), stream.size)
        return MixerCall(self.reads, runs=runs, size=size if merged else None)

    def _signals(self, call: MixerCall) -> Signals:
        """What the mixer has left."""
        signals = call.take()
        if signals is None and call.says_something:
            raise UnsupportedModelError(
                f"the mixer of block {self.index + 1} gave no signals: what was put around it since the model was "
                "patched holds back an argument; take it off, or call mtrkit.apply_reduction again"
            )
        return Signals() if signals is None else signals

    def _decide(self, hidden: Tensor, residual: Tensor, signals: Signals, stream: ReducedStream) -> Decision | None:
        """Where the tokens go; ``None`` if the plan keeps them all."""
        began_with = stream.slot.shape[1]
        num_kept, limit = self.reduction.plan.num_kept(self.index, began_with), None
        if self.threshold is not None:
            num_kept, limit = self.reduction.plan.fewest(hidden.shape[1]), self._limit(hidden, self.threshold)
        if num_kept >= hidden.shape[1]:
            return None
        frames = self.reduction.plan.shape.frames
        frame = frame_of(stream, self.reduction.special_at(began_with), frames) if frames > 1 else None
        special = self._special(stream)
        state = BlockState(hidden, residual, stream.size, special, signals, self.index + 1, frame, limit)
        return self.reduction.decide(self.index, state, num_kept, stream)

    def _limit(self, hidden: Tensor, threshold: float) -> Limit:
        """What stops the block from merging; :class:`InputError` while something records operators."""
        if not can_look(hidden):
            raise InputError(
                "threshold= counts links by the data, so the model has no fixed shapes that torch.compile, "
                "torch.export, torch.jit.trace or torch.func could record; reduce it by ratio= or tokens= for them"
            )
        watchers, layer = self.reduction.watchers, self.index + 1

        def watch(strength: Tensor) -> None:
            for watcher in watchers:
                watcher(layer, strength)

        return Limit(threshold, watch if watchers else None)

    def _special(self, stream: ReducedStream) -> Tensor:
        """(B, S): where the special tokens are now."""
        return columns(stream.slot, self.reduction.special_at(stream.slot.shape[1]))

    def _keep_time(self, stream: ReducedStream) -> ReducedStream:
        """The stream after a reduction, with how long its tokens last from now on."""
        special = self.reduction.special_at(stream.slot.shape[1])
        return stream.updated(lengths=count_lengths(stream, self.reduction.config.lengths, special))

    def _correct(self, hidden: Tensor | None, stream: ReducedStream) -> ReducedStream:
        """The stream with the features corrected that the head reads, after the last block of a calibrated model."""
        if self.correction is None:
            return stream
        return correct_stream(hidden, stream, self.correction, self._special(stream))
