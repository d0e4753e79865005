"""One forward pass: run a block, ask the method where its tokens go, move them, hand on the shorter stream.

Blocks from the first reducing one on get a ``forward`` of their own, as do the mixers of other packages whose
signals the method reads. What a pass has to remember travels in its return values (see
:class:`~mtrkit.types.ReducedStream`) and arguments (:class:`~mtrkit.types.MixerCall`); nothing is written to a module
during a pass. The first reducing block decides whether the pass is reduced: the others follow what they are given.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt
from mtrkit.dynamo import constant_result, refuse_proxy
from mtrkit.errors import InputError, StreamError, UnsupportedModelError
from mtrkit.methods.base import Method, MethodConfig
from mtrkit.ops import (
    check_stream,
    correct_stream,
    count_gaps,
    count_lengths,
    frame_of,
    nothing_dropped,
    open_stream,
    reduce_in_chain,
    reduce_stream,
    reduce_sum,
    remember_dropped,
    restore_stream,
    restore_sum,
    special_slots,
    sum_gaps,
)
from mtrkit.patch.journal import Journal
from mtrkit.patch.measured import Measured
from mtrkit.patch.patched import Companion, Patched, Replication
from mtrkit.patch.plan import Plan
from mtrkit.scan import Chain, can_look
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import BlockEnd, BlockState, Correction, Decision, Gaps, Limit, MixerCall, ReducedStream, Signals

Observer = Callable[[int, BlockState, Decision, ReducedStream], None]
Watcher = Callable[[int, Tensor], None]
"""Sees the strengths (B, s) of all links behind a block, counted from 1, of a reduction with thresholds."""

Recorder = Callable[[Tensor, ReducedStream], None]
"""Sees the stream of a two-tensor family after the last block, before anything is put back."""


@dataclass
class Reduction:
    """Everything one call of ``apply_reduction`` decided; shared by the patched blocks of a model."""

    method: Method
    config: MethodConfig
    adapter: Adapter
    input_size: tuple[int, ...]
    special_at: SpecialAt
    plan: Plan
    host: nn.Module = field(repr=False)
    correction: Correction | None = None  # of the features after the last block
    trained: nn.Module | None = field(default=None, repr=False)  # what a trained method has beside the model
    kind: "type[PatchedBlock] | None" = (
        None  # what stands in the place of the blocks' forward; None: as they are called
    )
    disabled: int = 0  # by how many who are not done
    removed: bool = False  # what others still hold of the patch then runs as if there were none
    observers: list[Observer] = field(default_factory=list)
    recorders: list[Recorder] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    measured: Measured = field(init=False, repr=False)  # for thresholds
    journal: Journal = field(default_factory=Journal, repr=False)
    blocks: tuple[nn.Module, ...] = field(init=False, repr=False)  # as they were when the patch was made
    _seen: tuple[nn.Module, ...] = field(init=False, repr=False)  # what was last found in their place, and is in order

    def __post_init__(self) -> None:
        self.measured = Measured(self.plan.layers)
        self.blocks = self._seen = tuple(self.adapter.blocks(self.host))
        first = {id(block): index for index, block in reversed([*enumerate(self.blocks)])}
        twice = next((i for i, block in enumerate(self.blocks) if first[id(block)] != i), None)
        if twice is not None:
            raise UnsupportedModelError(
                f"blocks {first[id(self.blocks[twice])] + 1} and {twice + 1} of {type(self.host).__name__} are one "
                "module, which cannot reduce in one place and not in the other; give each place a block of its own "
                "(copy.deepcopy), whose parameters may be shared"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy: enabled, and without those who watch."""
        return vars(self) | {"disabled": 0, "observers": [], "recorders": [], "watchers": []}

    @property
    def first(self) -> int:
        """The block, counted from 1, with which a reduced pass begins; beyond the last if none is reduced.

        What is trained may act in every block.
        """
        return 1 if self.trained is not None else min(self.plan.layers, default=len(self.blocks) + 1)

    @property
    def active(self) -> bool:
        """Whether passes that begin now are reduced."""
        return not self.disabled and not self.removed

    @property
    def scan_share(self) -> float | None:
        """Measured share of the scans that run; ``None`` if all do, or it was not measured."""
        return getattr(self.trained, "scan_share", None)

    def counted(self, shape: ModelShape) -> ModelShape:
        """The shape, with as many scans as run."""
        share = self.scan_share
        return replace(shape, scan_share=share) if share is not None and isinstance(shape, MambaShape) else shape

    def check_model(self) -> None:
        """Raise :class:`UnsupportedModelError` if the model has changed in ways that the patch cannot follow.

        It then has other blocks than when it was patched, though a block may be inside of a wrapper by now, a block
        has lost its patch, or a layer has become more than weights. Compilers trace the last check, so that what they
        have made is traced again when a layer changes; they do so for the list of blocks by themselves.
        """
        fault = self._fault()
        if fault:
            raise UnsupportedModelError(fault)
        for block in self.blocks if self.adapter.own_code_reads else ():
            mixer = self.adapter.mixer(block)
            if self.adapter.has_layers(mixer):
                self.adapter.check_layers(mixer, weights=False)

    @constant_result  # a compiler takes the answer: raised while it traces, an error would be taken for one of its own
    def _fault(self) -> str:
        """What is wrong with the blocks; nothing if they are as they were."""
        return self._fault_of_patch() or self._fault_of_list()

    def _fault_of_list(self) -> str:
        now = tuple(self.adapter.blocks(self.host))
        if len(now) == len(self._seen) and all(a is b for a, b in zip(now, self._seen, strict=True)):
            return ""
        same = len(now) == len(self.blocks)
        if not same or any(all(m is not block for m in a.modules()) for a, block in zip(now, self.blocks, strict=True)):
            return (
                f"the blocks of {type(self.host).__name__} have changed since it was patched ({len(self.blocks)} then, "
                f"{len(now)} now, or others in their place); call mtrkit.apply_reduction again"
            )
        self._seen = now
        return ""

    def _fault_of_patch(self) -> str:
        for index in range(self.first - 1, len(self.blocks)):
            block = self.blocks[index]
            current = vars(block).get("forward")
            others = isinstance(current, PatchedBlock) and current.reduction is not self
            if current is None or others or getattr(current, "__func__", None) is type(block).forward:
                return (
                    f"block {index + 1} of {type(self.host).__name__} has lost its patch: something has put an earlier "
                    "`forward` back since mtrkit.apply_reduction; call mtrkit.apply_reduction again"
                )
        return ""

    def decide(self, index: int, state: BlockState, num_kept: int, stream: ReducedStream) -> Decision | None:
        """Ask the method, and tell the observers; ``None`` if no link reaches the threshold."""
        decision = self.method.decide(state, num_kept, self.config)
        before, after, by_threshold = state.num_tokens, decision.token_map.num_kept, state.limit is not None
        if by_threshold and stream.slot.shape[1] == self.plan.shape.tokens:
            self.measured.add(state.layer, len(state.hidden), before, after)
        for observer in self.observers:
            observer(index, state, decision, stream)
        return None if by_threshold and before == after else decision


class ReadableMixer(Patched):
    """``forward`` of another package's mixer: the same kernels, unfused, for calls of a reduced block."""

    def __init__(self, mixer: nn.Module, adapter: Adapter) -> None:
        super().__init__(mixer)
        self.adapter = adapter

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the mixer and leave its signals in the call; without such a call, exactly as it was."""
        call = kwargs.get(self.adapter.call_argument or "", args[0] if args else None)
        if not isinstance(call, MixerCall):
            return self.hidden(hidden_states, *args, **kwargs)
        self.adapter.check_layers(self.module, weights=not torch.compiler.is_compiling())  # which sees stand-ins
        out, call.signals = self.adapter.run_mixer(self.module, hidden_states, call)
        return out


class GuardedEntry(Patched):
    """The method through which calls enter, refusing those that a reduced model cannot serve."""

    def __init__(self, model: nn.Module, name: str, reduction: Reduction) -> None:
        self.name = name
        super().__init__(model)
        self.reduction = reduction

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let the adapter serve the call, or raise :class:`UnsupportedModelError`."""
        if not self.reduction.active:
            return self.hidden(*args, **kwargs)
        reason = self.reduction.adapter.refusal_of_call(self.name, *args[1:], **kwargs)
        if reason is not None:
            raise UnsupportedModelError(f"{reason}; call the model without, or inside mtrkit.reduction_disabled(model)")
        return self.reduction.adapter.run_call(self.module, self.hidden, *args, **kwargs)


class PatchedBlock(Patched):
    """What the two kinds of reduced blocks below have in common."""

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

    def _call_mixer(self, tokens: Tensor, stream: ReducedStream | None) -> MixerCall:
        """What is handed to the mixer, which has to be one that was patched if it is to read the call."""
        del tokens
        if self.needs_readable and not _is_readable(self.reduction.adapter.mixer(self.module)):
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
        special, frames = self.reduction.special_at(began_with), self.reduction.plan.shape.frames
        frame = frame_of(stream, special, frames) if frames > 1 else None
        slots = columns(stream.slot, special)
        state = BlockState(hidden, residual, stream.size, slots, signals, self.index + 1, frame, limit)
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

    def _keep_time(self, stream: ReducedStream) -> ReducedStream:
        """The stream after a reduction, with how long its tokens last from now on."""
        special = self.reduction.special_at(stream.slot.shape[1])
        return stream.updated(lengths=count_lengths(stream, self.reduction.config.lengths, special))

    def _correct(self, hidden: Tensor | None, stream: ReducedStream) -> ReducedStream:
        """The stream with the features corrected that the head reads, after the last block of a calibrated model."""
        if self.correction is None:
            return stream
        special = self.reduction.special_at(stream.slot.shape[1])
        return correct_stream(hidden, stream, self.correction, columns(stream.slot, special))


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
            return BlockEnd(frozenset(), None, False, _as_it_is)
        call = self._asked(tokens, stream)
        if call.size is not None or call.gating is not None or call.gaps is not None:
            return None
        end = BlockEnd(call.reads, call.runs, self.reduces or self.last, partial(self._follow, stream))
        return end._replace(append=partial(self._append, stream)) if self._may_append(call) else end

    def _may_append(self, call: MixerCall) -> bool:
        """Whether all steps behind the block can be jobs of a chain: nothing needs values before it runs."""
        reduction = self.reduction
        looks = reduction.observers or self.last or self.threshold is not None or reduction.plan.shape.frames > 1
        plain = reduction.config.alignment == "carry" and reduction.config.lengths in ("one", "sizes")
        return self.reduces and not looks and plain and call.reads <= {"delta_mean"}

    def _append(
        self, stream: ReducedStream | None, chain: Chain, hidden: Tensor, inner: Tensor, signals: Signals
    ) -> tuple[Tensor, ReducedStream] | None:
        """:meth:`_follow` as jobs of a chain: the tensors have no values until it runs. ``None``: call that instead."""
        stream = open_stream(inner) if stream is None else stream.updated(residual=inner)
        began_with, append = stream.slot.shape[1], self.reduction.method.append
        num_kept = self.reduction.plan.num_kept(self.index, began_with)
        if append is None or num_kept >= hidden.shape[1] or not nothing_dropped(stream.stages):
            return None
        special = special_slots(chain, stream, self.reduction.special_at(began_with))
        state = BlockState(hidden, inner, stream.size, special, signals, self.index + 1)
        to = append(chain, state, num_kept, self.reduction.config)
        if to is None:
            return None
        return reduce_in_chain(chain, hidden, stream, to, self.reduction.config.lengths == "sizes")

    def _asked(self, tokens: Tensor, stream: ReducedStream | None) -> MixerCall:
        """What is handed to the mixer, with what its scan passes over."""
        call = self._call_mixer(tokens, stream)
        call.gaps = None if stream is None else self._gaps(stream)
        return call

    def _follow(self, stream: ReducedStream | None, hidden: Tensor, inner: Tensor, signals: Signals) -> Any:
        """What the next block is given, from this one's mixer output, the sum before its norm, and the signals."""
        stream = open_stream(inner) if stream is None else stream.updated(residual=inner)
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


class OneTensorBlock(PatchedBlock):
    """``forward`` of a block that passes on one tensor: the stream travels in its place."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the block on the tokens, reduce if this is the place, restore the sequence after the last."""
        reduced, stream = self._enter(x, x)
        if not reduced:
            return self.hidden(x, *args, **kwargs)
        tokens = x if stream is None else stream.residual
        call = self._call_mixer(tokens, stream)
        hidden, residual, signals = self._run(tokens, call, *args, **kwargs)
        tokens = hidden if residual is None else residual + hidden
        stream = open_stream(tokens) if stream is None else stream.updated(residual=tokens)
        if self.reduces:
            stream = self._shorten(hidden, residual, signals, stream)
        if self.reduces_inside:
            stream = stream.updated(residual=self.reduction.adapter.run_mlp(self.module, stream.residual))
        stream = self._correct(None, stream)
        return restore_sum(stream) if self.restores else stream

    def _run(self, tokens: Tensor, call: MixerCall, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None, Signals]:
        """What the block reduces: mixer output and residual, or the tokens alone if they are not such a sum."""
        adapter = self.reduction.adapter
        if self.repeats:
            self._check_arguments(args, kwargs)
        if self.reduces_inside:
            return adapter.run_attention(self.module, tokens, call), None, self._signals(call)
        split = adapter.split_block(self.module, tokens, call) if self.reduces or call.runs is not None else None
        if split is not None:
            return *split, self._signals(call)
        if call.says_something:
            return adapter.run_block(self.module, tokens, call), None, self._signals(call)
        return self.hidden(tokens, *args, **kwargs), None, Signals()

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise :class:`InputError` if the block was given what the adapter's code leaves out."""
        given = [f"an argument of type {type(value).__name__}" for value in args if value is not None]
        given += [name for name, value in kwargs.items() if value is not None and value is not False]
        if given:
            raise InputError(
                f"block {self.index + 1} was given {', '.join(given)} beside its tokens, of which a reduced model has "
                "fewer; call the model without, or inside mtrkit.reduction_disabled(model)"
            )

    def _shorten(
        self, hidden: Tensor, residual: Tensor | None, signals: Signals, stream: ReducedStream
    ) -> ReducedStream:
        """If nothing is beside the tokens, methods see them as the mixer's output and no residual."""
        beside = torch.zeros_like(hidden) if residual is None else residual
        decision = self._decide(hidden, beside, signals, stream)
        if decision is None:
            return stream
        return self._keep_time(reduce_sum(hidden, residual, stream, decision.token_map, decision.hidden_map))


def install(model: nn.Module, reduction: Reduction) -> None:
    """Patch the blocks in place of an earlier patch; if anything fails or interrupts, the model is as it was."""
    before: Reduction | None = vars(model).get(RECORD)
    try:
        if before is not None:
            uninstall(before)
        _install(model, reduction)
    except BaseException:
        uninstall(reduction)
        if before is not None:
            before.removed = False
            before.journal.redo()
        raise


def uninstall(reduction: Reduction) -> None:
    """Take the patch off. What others have wrapped is theirs and stays; it runs as if there were no patch."""
    reduction.removed = True
    reduction.journal.undo()


def _install(model: nn.Module, reduction: Reduction) -> None:
    journal, adapter = reduction.journal, reduction.adapter
    kind = reduction.kind or (OneTensorBlock if adapter.single_stream else TwoTensorBlock)
    for index, block in enumerate(reduction.blocks):
        if index + 1 < reduction.first:
            continue
        other = vars(block).get("forward")
        if isinstance(other, PatchedBlock) and not other.reduction.removed:
            raise UnsupportedModelError(
                f"block {index + 1} of {type(model).__name__} belongs to another model too, which is reduced; call "
                "mtrkit.remove_reduction on that one first, or give this one blocks of its own (copy.deepcopy)"
            )
        patched = kind(block, index, reduction)
        if patched.repeats:
            _check_own_code(block, adapter, vars(block).get("forward"))
        if patched.needs_readable:
            _check_own_code(adapter.mixer(block), adapter, None)  # one of the instance's own is refused below
            _make_readable(adapter.mixer(block), reduction)
        journal.set(block, "forward", patched)
        journal.set(block, "extra_repr", patched.extra_repr)
        journal.set(block, Replication.name, Replication(block))
    for entry in adapter.entries if reduction.first <= len(reduction.blocks) else ():
        journal.set(model, entry, GuardedEntry(model, entry, reduction))
        journal.set(model, Replication.name, Replication(model))
    if reduction.trained is not None:
        journal.set(model, Companion.name, Companion(model, reduction.trained))
    journal.set(model, RECORD, reduction)


def _is_readable(mixer: nn.Module) -> bool:
    """Whether the mixer, or one inside of a wrapper, leaves its signals in a call."""
    return any(
        isinstance(value, ReadableMixer) and value.module is module
        for module in mixer.modules()
        for value in (module.__dict__.get("forward"), module.__dict__.get("_old_forward"))
    )


def _check_own_code(module: nn.Module, adapter: Adapter, replaced: Any) -> None:
    """Raise :class:`UnsupportedModelError` if a module does not run the code that the adapter runs in its place."""
    ours = replaced is None or isinstance(replaced, Patched) or "_hf_hook" in vars(module)
    if ours and adapter.runs_code_of(type(module)):
        return
    raise UnsupportedModelError(
        f"a {type(module).__name__} has a `forward` of its own, which this method would leave out, as mtrkit runs the "
        f"original code of {adapter.name!r} in its place; use a hook instead, or a method that reads features only"
    )


def _make_readable(mixer: nn.Module, reduction: Reduction) -> None:
    """Patch a mixer, inside of what accelerate has put around its ``forward``."""
    own, readable = vars(mixer), ReadableMixer(mixer, reduction.adapter)
    hooked = "_hf_hook" in own and "_old_forward" in own
    if not hooked and readable.previous is not None and not isinstance(readable.previous, Patched):
        raise UnsupportedModelError(
            f"the forward of a {type(mixer).__name__} was replaced by {readable.previous!r}, which would hide what the "
            "method reads; take it off, call mtrkit.apply_reduction, and put it on again"
        )
    reduction.journal.set(mixer, "_old_forward" if hooked else "forward", readable)
    reduction.journal.set(mixer, Replication.name, Replication(mixer))


RECORD = "_mtrkit_reduction"


def reductions_in(model: nn.Module) -> list[tuple[nn.Module, Reduction]]:
    """The patched modules in a model or a wrapper around it, each with what its patch is."""
    return [(module, vars(module)[RECORD]) for module in model.modules() if RECORD in vars(module)]


def columns(slot: Tensor, positions: tuple[int, ...]) -> Tensor:
    """(B, S) slots of the tokens at ``positions``, without moving an index list to the device."""
    if not positions:
        return slot[:, :0]
    return torch.stack([slot[:, position] for position in positions], dim=1)


def columns_without(slot: Tensor, positions: tuple[int, ...]) -> Tensor:
    """(B, L − S, ...): slots, or anything else, of all tokens but those at ``positions``, which rise."""
    starts, ends = (0, *(position + 1 for position in positions)), (*positions, slot.shape[1])
    return torch.cat([slot[:, start:end] for start, end in zip(starts, ends, strict=True)], dim=1)
