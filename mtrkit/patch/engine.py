"""One forward pass: run a block, ask the method where its tokens go, move them, hand on the shorter stream.

Blocks from the first reducing one on get a ``forward`` of their own, as do the mixers whose signals the
method reads. What a pass has to remember travels in its return values (see
:class:`~mtrkit.types.ReducedStream`); nothing is written to a module during a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt
from mtrkit.errors import InputError, UnsupportedModelError
from mtrkit.methods.base import Method, MethodConfig
from mtrkit.ops import (
    continue_stream,
    count_gaps,
    open_stream,
    pass_over,
    reduce_stream,
    reduce_sum,
    restore_stream,
    restore_sum,
    sum_gaps,
)
from mtrkit.patch.journal import Journal
from mtrkit.patch.plan import Plan
from mtrkit.scan import Signals
from mtrkit.types import BlockState, Decision, Gaps, ReducedStream

Observer = Callable[[int, BlockState, Decision, ReducedStream], None]


@dataclass
class Reduction:
    """Everything one call of ``apply_reduction`` decided; shared by the patched blocks of a model."""

    method: Method
    config: MethodConfig
    adapter: Adapter
    input_size: tuple[int, ...]
    special_at: SpecialAt
    plan: Plan
    enabled: bool = True
    observer: Observer | None = None
    journal: Journal = field(default_factory=Journal, repr=False)

    def decide(self, index: int, state: BlockState, num_kept: int, stream: ReducedStream) -> Decision:
        """Ask the method, and tell whoever observes."""
        decision = self.method.decide(state, num_kept, self.config)
        if self.observer is not None:
            self.observer(index, state, decision, stream)
        return decision


class MixerOutput(NamedTuple):
    """Stands in for the mixer's output between a reducing block's mixer and the block's end."""

    hidden: Tensor
    signals: Signals


class ReadableMixer:
    """``forward`` of a mixer whose signals are read: the same kernels, unfused."""

    def __init__(self, mixer: nn.Module, reduction: Reduction) -> None:
        self.mixer, self.reduction = mixer, reduction
        self.previous = vars(mixer).get("forward")

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the mixer; while reduction is disabled, exactly as it was."""
        if not self.reduction.enabled:
            return _call(self.mixer, self.previous, hidden_states, *args, **kwargs)
        adapter, reads = self.reduction.adapter, self.reduction.config.reads
        gaps = kwargs.get(adapter.side_channel or "", args[0] if args else None)
        if gaps is not None and not isinstance(gaps, Gaps):
            raise InputError(
                f"{adapter.side_channel} was given, but a reduced model needs the whole sequence in one pass; call "
                "it without, or inside mtrkit.reduction_disabled(model)"
            )
        return MixerOutput(*adapter.run_mixer(self.mixer, hidden_states, reads, gaps))


class GuardedEntry:
    """The method through which calls enter, refusing those that a reduced model cannot serve."""

    def __init__(self, model: nn.Module, name: str, reduction: Reduction) -> None:
        self.model, self.name, self.reduction = model, name, reduction
        self.previous = vars(model).get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let the adapter serve the call, or raise :class:`UnsupportedModelError`."""
        call = partial(_call, self.model, self.previous, name=self.name)
        if not self.reduction.enabled:
            return call(*args, **kwargs)
        reason = self.reduction.adapter.refusal_of_call(self.name, *args[1:], **kwargs)
        if reason is not None:
            raise UnsupportedModelError(f"{reason}; call the model without, or inside mtrkit.reduction_disabled(model)")
        return self.reduction.adapter.serve(self.model, call, *args, **kwargs)


class PatchedBlock:
    """What the two kinds of reduced blocks below have in common."""

    def __init__(self, block: nn.Module, index: int, reduction: Reduction) -> None:
        self.block, self.index, self.reduction = block, index, reduction
        self.previous = vars(block).get("forward")
        self.reduces = index + 1 in reduction.plan.layers
        self.restores = index + 1 == reduction.plan.shape.depth and not reduction.adapter.takes_stream

    def extra_repr(self) -> str:
        """What printing the model shows for this block."""
        schedule, before = self.reduction.plan.schedule, self.reduction.plan.shape.tokens
        before = schedule[self.index - 1] if self.index else before
        change = f", {before}→{schedule[self.index]} tokens" if self.reduces else f", {before} tokens"
        return f"reduction={self.reduction.method.name}{change}"

    def _decide(self, hidden: Tensor, residual: Tensor, signals: Signals, stream: ReducedStream) -> Decision | None:
        """Where the tokens go; ``None`` if the plan keeps them all."""
        began_with = stream.slot.shape[1]
        num_kept = self.reduction.plan.num_kept(self.index, began_with)
        if num_kept >= hidden.shape[1]:
            return None
        special = self.reduction.special_at(began_with)
        state = BlockState(hidden, residual, stream.size, _columns(stream.slot, special), signals)
        return self.reduction.decide(self.index, state, num_kept, stream)


class ReducedBlock(PatchedBlock):
    """``forward`` of a block that reduces, or that runs on a stream reduced before."""

    def __call__(self, hidden_states: Tensor, residual: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run the block on the stream, reduce if this is the place, restore the sequence after the last."""
        if not self.reduction.enabled:
            return _call(self.block, self.previous, hidden_states, residual, *args, **kwargs)
        stream = residual if isinstance(residual, ReducedStream) else None
        inner = residual if stream is None else stream.residual
        if stream is not None and stream.stages:
            kwargs |= self._gaps(stream)
        out, inner = _call(self.block, self.previous, hidden_states, inner, *args, **kwargs)
        hidden, signals = out if isinstance(out, MixerOutput) else (out, Signals())
        if self.reduces:
            hidden, stream = self._reduce(hidden, inner, signals, stream)
        elif stream is not None:
            stream = continue_stream(inner, stream)
        if stream is None:
            return hidden, inner
        return restore_stream(hidden, stream) if self.restores else (hidden, stream)

    def _reduce(
        self, hidden: Tensor, residual: Tensor, signals: Signals, stream: ReducedStream | None
    ) -> tuple[Tensor, ReducedStream]:
        stream = open_stream(residual) if stream is None else continue_stream(residual, stream)
        decision = self._decide(hidden, residual, signals, stream)
        if decision is None:
            return hidden, stream
        if self.reduction.config.alignment == "last" and signals.delta is not None:
            passed = pass_over(stream, decision.token_map.slot, signals.delta, self.reduction.adapter.directions)
            stream = ReducedStream(stream.residual, stream.size, stream.slot, stream.stages, passed)
        return reduce_stream(hidden, stream, decision.token_map, decision.hidden_map)

    def _gaps(self, stream: ReducedStream) -> dict[str, Gaps]:
        """What the block's scan passes over, under the name by which the block hands it to its mixer."""
        alignment, name = self.reduction.config.alignment, self.reduction.adapter.side_channel
        if alignment == "carry" or name is None:
            return {}
        return {name: count_gaps(stream) if alignment == "bias" else sum_gaps(stream)}


class SingleStreamBlock(PatchedBlock):
    """``forward`` of a block that passes on one tensor: the stream travels in its place."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block on the tokens, reduce if this is the place, restore the sequence after the last."""
        if not self.reduction.enabled:
            return _call(self.block, self.previous, x, *args, **kwargs)
        stream = x if isinstance(x, ReducedStream) else None
        hidden, residual, signals = self._run(x if stream is None else stream.residual, *args, **kwargs)
        tokens = hidden if residual is None else residual + hidden
        if stream is not None or self.reduces:
            stream = open_stream(tokens) if stream is None else continue_stream(tokens, stream)
        if stream is None:
            return tokens
        if self.reduces:
            stream = self._shorten(hidden, residual, signals, stream)
        return restore_sum(stream) if self.restores else stream

    def _run(self, tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Signals]:
        """Mixer output and residual, or the tokens and nothing beside them where they are no such sum."""
        adapter, reads = self.reduction.adapter, self.reduction.config.reads
        split = adapter.split_block(self.block, tokens, reads) if self.reduces else None
        if split is not None:
            return split
        if self.reduces and reads:
            tokens, signals = adapter.run_block(self.block, tokens, reads)
            return tokens, None, signals
        return _call(self.block, self.previous, tokens, *args, **kwargs), None, Signals()

    def _shorten(
        self, hidden: Tensor, residual: Tensor | None, signals: Signals, stream: ReducedStream
    ) -> ReducedStream:
        """Where nothing is beside the tokens, methods see them as the mixer's output and no residual."""
        beside = torch.zeros_like(hidden) if residual is None else residual
        decision = self._decide(hidden, beside, signals, stream)
        if decision is None:
            return stream
        if residual is None:
            return reduce_stream(hidden[..., :0], stream, decision.token_map)[1]
        return reduce_sum(hidden, residual, stream, decision.token_map, decision.hidden_map)


def install(model: nn.Module, reduction: Reduction) -> None:
    """Patch the blocks in place; if anything fails, the model is as it was."""
    try:
        _install(model, reduction)
    except BaseException:
        reduction.journal.undo()
        raise


def _install(model: nn.Module, reduction: Reduction) -> None:
    journal, adapter, plan = reduction.journal, reduction.adapter, reduction.plan
    first = min(plan.layers, default=plan.shape.depth + 1)
    kind: type[PatchedBlock] = SingleStreamBlock if adapter.single_stream else ReducedBlock
    for index, block in enumerate(adapter.blocks(model)):
        if index + 1 < first:
            continue
        patched = kind(block, index, reduction)
        if not adapter.single_stream and _is_read(patched, reduction, first):
            mixer = adapter.mixer(block)
            journal.set(mixer, "forward", ReadableMixer(mixer, reduction))
        journal.set(block, "forward", patched)
        journal.set(block, "extra_repr", patched.extra_repr)
    for entry in adapter.entries if plan.layers else ():
        journal.set(model, entry, GuardedEntry(model, entry, reduction))
    journal.set(model, RECORD, reduction)


def _is_read(block: PatchedBlock, reduction: Reduction, first: int) -> bool:
    """Whether the block's mixer has to give its signals, or to pass over what was dropped before."""
    aligned = reduction.config.alignment != "carry" and block.index + 1 > first
    return aligned or (block.reduces and bool(reduction.config.reads))


RECORD = "_mtrkit_reduction"


def _call(
    module: nn.Module, previous: Callable[..., Any] | None, *args: Any, name: str = "forward", **kwargs: Any
) -> Any:
    """Call the method that the patch hides: the instance's own if it had one, otherwise its class's."""
    if previous is not None:
        return previous(*args, **kwargs)
    return getattr(type(module), name)(module, *args, **kwargs)


def _columns(slot: Tensor, positions: tuple[int, ...]) -> Tensor:
    """(B, S) slots of the tokens at ``positions``, without moving an index list to the device."""
    if not positions:
        return slot[:, :0]
    return torch.stack([slot[:, position] for position in positions], dim=1)
