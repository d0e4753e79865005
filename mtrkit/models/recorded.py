"""A stretch of blocks, with the reductions between them, as one operator in the graphs that torch.compile makes.

Operator by operator, what torch does around each of them takes longer than many of them at small batches
(docs/speed.md).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrkit.models.chained import ChainedPass, inner
from mtrkit.models.reach import ahead, own_weights, reach
from mtrkit.ops import foresee_reduction, reads_of, with_residual
from mtrkit.scan import BlockWeights, fused, place_block
from mtrkit.scan.fastpath import can_record, fits_operator, own_forward
from mtrkit.scan.flops import FORMULAS, add_formula
from mtrkit.scan.operators import refuse_derivatives
from mtrkit.types import BlockEnd, ChainedReduction, ReducedStream, Stage, TokenMap

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define(
    "stretch(Tensor hidden, Tensor? residual, Tensor? size, Tensor? slot, Tensor? lengths, Tensor[] weights, "
    "float[] eps, bool[] halve, int[] num_kept, int layer, str key, int[] special, bool keeps_time, str reads) "
    "-> Tensor[]"
)


class _Stretch(NamedTuple):
    """The operator's arguments."""

    hidden: Tensor
    residual: Tensor | None
    size: Tensor | None  # these three of a stream, if there is one
    slot: Tensor | None
    lengths: Tensor | None
    weights: list[Tensor]  # of one block after the other
    eps: list[float]  # per block, as are the next two
    halve: list[bool]
    num_kept: list[int]  # L' behind it; 0: no reduction
    layer: int  # number of the first block
    key: str  # these three of all reductions
    special: Sequence[int]
    keeps_time: bool
    reads: str  # names of signals of the last block

    def given(self) -> Any:
        """What travels beside the hidden states in front of the first block."""
        if self.residual is None or self.size is None or self.slot is None:
            return self.residual
        return ReducedStream(self.residual, self.size, self.slot, (), False, lengths=self.lengths)

    def by_block(self) -> list[list[Tensor]]:
        """The weights of each block."""
        each = len(self.weights) // len(self.eps)
        return [self.weights[i : i + each] for i in range(0, len(self.weights), each)]

    def blocks(self) -> list[BlockWeights]:
        """The same with their names."""
        found = []
        for (norm, in_proj, out_proj, *directions), eps, halve in zip(
            self.by_block(), self.eps, self.halve, strict=True
        ):
            found.append(BlockWeights(norm, eps, fused.unflatten(in_proj, out_proj, directions, halve)))
        return found

    def reductions(self) -> dict[int, ChainedReduction]:
        """Those behind blocks, by their indices."""
        same, kept = (tuple(self.special), self.keeps_time), enumerate(self.num_kept)
        return {i: ChainedReduction(self.layer + i, count, self.key, *same) for i, count in kept if count}


def _run(*arguments: Any) -> list[Tensor]:
    stretch = _Stretch(*arguments)
    blocks, names = [place_block(block, stretch.hidden.dtype) for block in stretch.blocks()], stretch.reads.split()
    passing, begin = ChainedPass(stretch.hidden, stretch.given()), 0
    for index, reduction in stretch.reductions().items():
        passing.append_blocks(blocks[begin : index + 1], reads_of(reduction))
        passing.append_reduction(reduction)
        begin = index + 1
    changed = _parts(passing.given) if begin else []
    if begin == len(blocks):
        hidden, given = passing.run()
        return [hidden, given.residual, *changed]
    passing.append_blocks(blocks[begin:], frozenset(names))
    out, total, signals = passing.run_to_mixer()
    return [out, total, *(getattr(signals, name) for name in names), *changed]


def _shapes(*arguments: Any) -> list[Tensor]:
    stretch = _Stretch(*arguments)
    hidden, given, reductions = stretch.hidden, stretch.given(), stretch.reductions()
    for reduction in reductions.values():
        hidden, given = foresee_reduction(hidden, given, reduction)
    *_, (_, _, mixer) = stretch.blocks()
    weights = (mixer.in_proj, mixer.out_proj, fused.flatten(mixer))
    out, *signals = fused.mixer_shapes(hidden, *weights, mixer.halve, stretch.reads)
    return [out, out.new_empty(out.shape, dtype=torch.float32), *signals, *(_parts(given) if reductions else [])]


def _parts(stream: ReducedStream) -> list[Tensor]:
    """All tensors of a stream but the residual."""
    lengths = [] if stream.lengths is None else [stream.lengths]
    maps = [x for stage in stream.stages for x in (stage.token_map.slot, stage.token_map.kept, stage.token_map.merged)]
    return [stream.size, stream.slot, *lengths, *maps]


def _flops(*arguments: Any) -> int:
    """The blocks', from the shapes of all tensors; what the reductions between them compare is not in it."""
    stretch = _Stretch(*arguments)
    count, (batch, length, width) = 0, stretch.hidden
    for (_, in_proj, out_proj, *directions), kept in zip(stretch.by_block(), stretch.num_kept, strict=True):
        count += FORMULAS["mixer"]((batch, length, width), in_proj, out_proj, directions, False, "")
        length = kept or length
    return count


_lib.impl("stretch", _run, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::stretch", _shapes, lib=_lib)
refuse_derivatives("stretch")
add_formula("stretch", _flops)


class _Found(NamedTuple):
    """What is recorded of a stretch."""

    weights: list[BlockWeights]
    reductions: dict[int, ChainedReduction]  # behind blocks, by their indices in the stretch
    end: BlockEnd | None  # what the last one does behind its mixer, if that is not a part of it


def record(blocks: list[nn.Module], at: int, hidden: Tensor, given: Any) -> tuple[Tensor, Any, int] | None:
    """From block ``at`` on as far as one operator goes, and where that ends; ``None`` if it would not begin."""
    if not can_record(hidden, inner(given)):
        return None
    found = _foresee(blocks, at, hidden, given)
    if not found.weights:
        return None
    end, names = found.end, [] if found.end is None else fused.in_order(found.end.reads)
    out, residual, *others = torch.ops.mtrkit.stretch.default(*_arguments(hidden, given, found, names))
    at += len(found.weights)
    after = _handed_on(residual, given, found, others[len(names) :])
    if end is None:
        return out, after, at
    if isinstance(after, ReducedStream):  # it has values, which that of `end` has not
        end = ahead(own_forward(blocks[at - 1]), out, after)
        assert end is not None
    return *end.follow(out, residual, fused.signals_by_name(names, others[: len(names)])), at


def _foresee(blocks: list[nn.Module], at: int, hidden: Tensor, given: Any) -> _Found:
    weights: list[BlockWeights] = []
    reductions: dict[int, ChainedReduction] = {}
    while at + len(weights) < len(blocks):
        some, end = reach(blocks, at + len(weights), hidden, given, partial(_weights, dtype=hidden.dtype))
        if not some:
            break
        weights += some
        if end is None or end.reduction is None:
            return _Found(weights, reductions, end)
        reductions[len(weights) - 1] = end.reduction
        hidden, given = foresee_reduction(hidden, given, end.reduction)
    return _Found(weights, reductions, None)


def _weights(index: int, block: nn.Module, *, dtype: torch.dtype) -> BlockWeights | None:
    del index
    found = own_weights(block)
    return found if found is not None and fits_operator(found.mixer, dtype) else None


def _arguments(hidden: Tensor, given: Any, found: _Found, names: list[str]) -> tuple[Any, ...]:
    stream = (given.size, given.slot, given.lengths) if isinstance(given, ReducedStream) else (None, None, None)
    weights: list[Tensor] = []
    for norm, _, mixer in found.weights:
        weights += (norm, mixer.in_proj, mixer.out_proj, *fused.flatten(mixer))
    eps, halve = [own.eps for own in found.weights], [own.mixer.halve for own in found.weights]
    num_kept, layer = [0] * len(eps), 0
    same: tuple[str, tuple[int, ...], bool] = ("", (), False)
    for index, reduction in found.reductions.items():
        num_kept[index], layer, same = reduction.num_kept, reduction.layer - index, reduction[2:]
    return hidden, inner(given), *stream, weights, eps, halve, num_kept, layer, *same, " ".join(names)


def _handed_on(residual: Tensor, given: Any, found: _Found, parts: list[Tensor]) -> Any:
    """What travels behind the operator; ``parts`` are its :func:`_parts`, if it has reduced."""
    if not found.reductions and not isinstance(given, ReducedStream):
        return residual
    stream = with_residual(given, residual)
    if not found.reductions:
        return stream
    size, slot, *others = parts
    lengths = others.pop(0) if len(others) % 3 else None
    maps = [TokenMap(*of_one) for of_one in zip(*[iter(others)] * 3, strict=True)]
    stages = (*stream.stages, *(Stage(to, None, None) for to in maps))
    return stream.updated(size=size, slot=slot, lengths=lengths, stages=stages)
