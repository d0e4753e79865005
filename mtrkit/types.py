"""The nouns everything else speaks in.

Letters: B batch, L tokens (special tokens included), L' tokens after a reduction, m tokens merged in it,
D model width, E inner width, N state size, S special tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import StreamError

Combine = Literal["mean", "max", "min"]


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Where each token goes in one reduction, per sample.

    ``slot`` alone says everything; ``kept`` and ``merged`` are its inverse, held so that applying the map
    needs no search. A token in neither is dropped. Slots are numbered in the order in which the next scan
    sees them.
    """

    slot: Tensor  # (B, L) int64: output slot of each input token, −1 for a dropped one
    kept: Tensor  # (B, L') int64: input token that stands at each slot
    merged: Tensor  # (B, m) int64: input tokens that are merged into another one's slot
    weight: Tensor | None = None  # (B, L, 1): share of each token in the mean at its slot; None: all equal
    combine: Combine = "mean"  # how tokens that meet at a slot become one; weights are for the mean

    @classmethod
    def identity(cls, batch: int, length: int, device: torch.device | str | None = None) -> "TokenMap":
        """The map that keeps every one of ``length`` tokens where it is."""
        every = torch.arange(length, device=device).expand(batch, length)
        return cls(every, every, every[:, :0])

    @property
    def num_tokens(self) -> int:
        """L, the tokens before the reduction."""
        return self.slot.shape[1]

    @property
    def num_kept(self) -> int:
        """L', the tokens after it."""
        return self.kept.shape[1]

    @property
    def drops(self) -> bool:
        """Whether some tokens leave without being merged; known from the shapes alone."""
        return self.num_tokens > self.num_kept + self.merged.shape[1]

    def weighted(self, weight: Tensor | None) -> "TokenMap":
        """The same moves, with other shares (B, L, 1) in the means; ``None``: all equal."""
        return TokenMap(self.slot, self.kept, self.merged, weight)

    def combining(self, combine: Combine) -> "TokenMap":
        """The same moves, with another way of making one token of those that meet; means are plain."""
        return TokenMap(self.slot, self.kept, self.merged, combine=combine)

    def follow(self, slot: Tensor) -> Tensor:
        """Send slots (B, n) of this map's input to those of its output; −1 stays −1."""
        return torch.where(slot < 0, slot, self.slot.gather(1, slot.clamp(min=0)))

    def then(self, after: "TokenMap") -> "TokenMap":
        """The one map that moves tokens as this one and then ``after`` do; weights are not composed."""
        merged = torch.cat([self.merged, self.kept.gather(1, after.merged)], dim=1)
        return TokenMap(after.follow(self.slot), self.kept.gather(1, after.kept), merged)


class Split(NamedTuple):
    """The groups a method sorts the tokens into; each (B, n) int64, in sequence order."""

    keep: Tensor  # stay untouched; special tokens are always among them
    dst: Tensor  # stay and may receive others
    src: Tensor  # may leave


class Decision(NamedTuple):
    """A method's answer, with what led to it for those who want to look."""

    token_map: TokenMap  # of the residual, and of all that is followed through the pass
    score: Tensor | None = None  # (B, L): larger means kept
    split: Split | None = None
    hidden_map: TokenMap | None = None  # of the hidden states, if other tokens merge there; keeps the same ones


class Scan(NamedTuple):
    """The arguments of a selective scan, in the form that kernels and backends take; G groups, E = G · F channels."""

    u: Tensor  # (B, E, L)
    delta: Tensor  # (B, E, L), before bias and softplus
    A: Tensor  # (E, N)
    B: Tensor  # (B, G, N, L)
    C: Tensor  # (B, G, N, L)
    D: Tensor | None = None  # (E,)
    z: Tensor | None = None  # (B, E, L)
    bias: Tensor | None = None  # (E,)
    softplus: bool = False
    reverse: bool = False  # whether the scan runs from the last token to the first

    @property
    def tensors(self) -> "tuple[Tensor | None, ...]":
        """The eight tensors, in order."""
        return self[:8]


class Signals(NamedTuple):
    """What a method may read of a block, aligned with the tokens and summed over the scan directions."""

    delta: Tensor | None = None  # (B, L, E): the scan's time step, after bias and softplus
    delta_mean: Tensor | None = None  # (B, L): its mean over the channels
    ssm_B: Tensor | None = None  # (B, L, N)
    ssm_C: Tensor | None = None  # (B, L, N)
    y: Tensor | None = None  # (B, L, E): scan output with the skip term, before the gate
    keys: Tensor | None = None  # (B, L, D / heads): of an attention block, mean over the heads
    attention: Tensor | None = None  # (B, L, 1): the class token's attention to each token, mean over the heads
    gates: Tensor | None = None  # (B, 2): 1 if the forward, the backward scan has run for a sample, otherwise 0


class Limit(NamedTuple):
    """Where merging stops: at links weaker than a threshold. So their number depends on the data."""

    threshold: float  # least strength of a link that leaves, in the unit of the method's similarity
    watch: Callable[[Tensor], None] | None = None  # is shown the strengths (B, s) of all links

    def leaving(self, strength: Tensor, most: int) -> int:
        """Links (B, s) per sample that leave, ``most`` at most: one number for the batch, the mean, rounded.

        So every sample keeps as many tokens, and the host waits for the device.
        """
        if self.watch is not None:
            self.watch(strength)
        samples, found = len(strength), int((strength >= self.threshold).sum())
        return min(most, (2 * found + samples) // (2 * samples)) if samples else 0


@dataclass(frozen=True, eq=False)
class BlockState:
    """What a method may look at when it decides where the tokens go: the block that has just run."""

    hidden: Tensor  # (B, L, D): the mixer's output
    residual: Tensor  # (B, L, D): the running sum that the block added to its input, without `hidden`
    size: Tensor  # (B, L, 1): how many of the original tokens each one stands for
    special: Tensor  # (B, S) int64: where the class, distillation and register tokens stand
    signals: Signals  # those that the method says it reads
    layer: int = 0  # its number, counted from 1
    frame: Tensor | None = None  # (B, L) int64: of a clip, the frame that each patch is of
    limit: Limit | None = None  # if fewer tokens may leave than are asked for

    @property
    def num_tokens(self) -> int:
        """L, special tokens included."""
        return self.hidden.shape[1]

    @property
    def features(self) -> Tensor:
        """(B, L, D): the residual stream after the block, which the next block reads."""
        return self.residual + self.hidden


class Gaps(NamedTuple):
    """What a scan passes over in front of each token, for its dropped neighbours; (B, L, C) per direction.

    C is 1 for their number, or E for the sum of their time steps.
    """

    forward: Tensor
    backward: Tensor


class Runs(NamedTuple):
    """How many positions each token of a shortened sequence lasts, for a convolution and a scan that count them."""

    lengths: Tensor  # (B, L') int64, at least 1; special tokens last one
    positions: int  # of a sample, at most


class Gating(NamedTuple):
    """What chooses, per sample, the scans of a mixer that run, and while training the tokens that count in them.

    Dropped tokens that do not count stand behind all others, so that a scan in either direction sees what it would see
    without them: the forward one meets them last, and the backward one meets them first, as if they were padding.
    """

    select: Callable[[Tensor], Tensor] | None  # in_proj's output (B, 2E) to gates (B, 2); None: every scan runs
    tokens: Tensor  # (B, S) int64: the mean of in_proj's output at these is what it sees; at all that count if S is 0
    mask: Tensor | None = None  # (B, L, 1): 0 for tokens that do not count; None: all do
    trains: bool = False  # gradients pass through the gates, so that a scan runs for samples that do without it too


class GatedPass(NamedTuple):
    """What a pass with trained pruning remembers beside its tokens; M patches, S stages and blocks in their order."""

    mask: Tensor | None = None  # (B, L, 1): 0 for tokens that are dropped and still there; None: there are none
    kept: tuple[Tensor, ...] = ()  # (B, M) per stage while training: 1 for patches that it keeps, in their first order
    gates: tuple[Tensor, ...] = ()  # (B, 2) of each block


class Correction(NamedTuple):
    """What is added to the final features x (…, D) of a reduced model: ``x @ down @ up + bias``."""

    down: Tensor  # (D, R)
    up: Tensor  # (R, D)
    bias: Tensor  # (D,)

    def of(self, features: Tensor) -> Tensor:
        """The correction of features (…, D), in their dtype and on their device."""
        return features @ self.down.to(features) @ self.up.to(features) + self.bias.to(features)


@dataclass(eq=False)
class MixerCall:
    """What a reduced block hands to its mixer beside the tokens, and where the mixer leaves what is read of it.

    It travels in an argument of the block's own, so that hooks, wrappers and checkpoints around a mixer see the
    tensors that they know, and nothing is kept on a module.
    """

    reads: frozenset[str] = frozenset()  # names of the signals wanted
    gaps: Gaps | None = None  # what the mixer's scan passes over
    runs: Runs | None = None  # how long the tokens last; None: one position each
    size: Tensor | None = None  # (B, L, 1): how many tokens each one stands for, by which attention to it is multiplied
    gating: Gating | None = None  # which scans run; None: all
    signals: Signals | None = None

    @property
    def says_something(self) -> bool:
        """Whether a mixer that does not get it would be wrong."""
        given = (self.gaps, self.runs, self.size, self.gating)
        return bool(self.reads) or any(part is not None for part in given)

    def take(self) -> Signals | None:
        """The signals, which are let go here: a checkpoint holds its arguments until the backward pass."""
        signals, self.signals = self.signals, None
        return signals


class ChainedReduction(NamedTuple):
    """A reduction that can be jobs of a chain."""

    layer: int  # the block behind which it is, counted from 1
    num_kept: int  # L'
    key: str  # of its method and options, as mtrkit.ops knows them; these three are the same in a whole model
    special: tuple[int, ...]  # positions of the special tokens in the full sequence
    keeps_time: bool  # whether tokens last as many positions as they stand for


class BlockEnd(NamedTuple):
    """What a patched block asks of its mixer and does behind it, if it does nothing before."""

    reads: frozenset[str]
    changes: bool  # whether the next block is given other tokens than this one
    follow: Callable[[Tensor, Tensor, Signals], tuple[Tensor, Any]]
    """From mixer output, the sum before its norm, and the signals to what the next block is given."""

    reduction: ChainedReduction | None = None
    """The same as jobs of a chain. ``None``: run the chain, then follow."""


class Stage(NamedTuple):
    """One reduction that has happened in a forward pass, with what is needed to undo it."""

    token_map: TokenMap
    hidden: Tensor | None  # (B, L, D) before the reduction, kept only if it drops tokens
    residual: Tensor | None


class ReducedStream(NamedTuple):
    """Travels between reduced blocks in the place of the residual tensor.

    All that one forward pass must remember is in here and nothing is on the modules, which is why two
    threads may share a model and why a compiler sees plain data flow.
    """

    residual: Tensor  # (B, L', D)
    size: Tensor  # (B, L', 1)
    slot: Tensor  # (B, L) int64: where each original token stands now, −1 if it was dropped
    stages: tuple[Stage, ...]
    records: bool  # whether gradients were recorded where it was made
    dropped_delta: Tensor | None = None  # (B, L, E): Δ of dropped tokens per direction, if a method wants it remembered
    lengths: Tensor | None = None  # (B, L') int64: how many positions each token lasts, if the method keeps time
    gated: GatedPass | None = None  # of a model with trained pruning

    def runs(self) -> Runs | None:
        """What keeps time in the next block; no property, as torch 2.6's compiler evaluates none of a named tuple."""
        return None if self.lengths is None else Runs(self.lengths, self.slot.shape[1])

    def updated(
        self,
        *,
        residual: Tensor | None = None,
        size: Tensor | None = None,
        slot: Tensor | None = None,
        stages: tuple[Stage, ...] | None = None,
        dropped_delta: Tensor | None = None,
        lengths: Tensor | None = None,
        gated: GatedPass | None = None,
    ) -> "ReducedStream":
        """The stream with what is given in place of its own; torch 2.6's compiler does not follow ``_replace``."""
        return ReducedStream(
            self.residual if residual is None else residual,
            self.size if size is None else size,
            self.slot if slot is None else slot,
            self.stages if stages is None else stages,
            self.records,
            self.dropped_delta if dropped_delta is None else dropped_delta,
            self.lengths if lengths is None else lengths,
            self.gated if gated is None else gated,
        )

    def __getitem__(self, index: Any) -> Any:
        raise _no_tensor(f"a tensor or a pair, to take [{index!r}] of it,")

    def __getattr__(self, name: str) -> Any:
        raise _no_tensor(f"a tensor with `{name}`")


def _no_tensor(expected: str) -> StreamError:
    return StreamError(
        f"a ReducedStream was found where {expected} was expected: between the blocks of a reduced model this travels "
        "in place of the residual. mtrkit.ops.stream_tokens(hidden, residual) gives the features on the full sequence, "
        "and mtrkit.reduction_disabled(model) runs the model without reduction"
    )


def _refuse(self: ReducedStream, *others: object) -> Any:
    raise _no_tensor("a tensor to compute with")


for _operator in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul", "rmatmul", "pow", "rpow"),
    *("lt", "le", "gt", "ge", "neg", "pos", "abs", "invert"),
):  # a tuple has some of its own
    setattr(ReducedStream, f"__{_operator}__", _refuse)
