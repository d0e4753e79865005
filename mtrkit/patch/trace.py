"""Watch where the tokens of each image go, without changing a bit of the output."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtrkit.adapters.grid import PatchGrid
from mtrkit.errors import InputError
from mtrkit.ops import original_positions, restore_sum, stream_tokens
from mtrkit.types import BlockState, Decision, ReducedStream, Split


@dataclass(frozen=True)
class TraceStage:
    """One reduction, in positions of the original sequence; all tensors are on the CPU.

    Attributes:
        layer: Block after which it happened, counted from 1.
        score: (B, L') importance of the tokens present, or ``None`` if the method has none.
        present: (B, L') original position of each token present before the reduction; a merged token is
            named by the position it stands for in the sequence.
        split: The method's groups, as indices into ``present``, or ``None``.
        slot: (B, L) token that each original position has become after the reduction, −1 if dropped.
        kept: (B, L'') index into ``present`` of the token that stands at each place after the reduction; what else
            has the same place was merged into it.
    """

    layer: int
    score: Tensor | None
    present: Tensor
    split: Split | None
    slot: Tensor
    kept: Tensor

    @property
    def num_kept(self) -> int:
        """Tokens after the reduction."""
        return int(self.slot.max()) + 1 if self.slot.numel() else 0


@dataclass
class Trace:
    """What happened in the forward passes since tracing began, the latest pass last.

    Attributes:
        stages: One entry per reduction; a second pass appends to those of the first.
        grid: Where the patches of an input are; ``None`` if the model's tokens are not one per patch.
        num_tokens: L of an input of the size that the model was reduced for, or that was given instead.
    """

    stages: list[TraceStage] = field(default_factory=list)
    grid: PatchGrid | None = None
    num_tokens: int = 0
    _begin: int = field(default=0, init=False, repr=False)  # the latest pass's first stage, or where that would be
    _asked: int = field(default=-1, init=False, repr=False)  # block that was last asked what is to leave
    _shape: tuple[int, int] = field(default=(1, 0), init=False, repr=False)  # (B, L) of the latest pass

    @property
    def slot(self) -> Tensor:
        """(B, L) final token of each original position in the latest pass, −1 if it was dropped."""
        latest = self.latest
        return latest[-1].slot if latest else torch.arange(self._shape[1] or self.num_tokens).expand(self._shape[0], -1)

    @property
    def latest(self) -> list[TraceStage]:
        """The reductions of the latest pass, as far as it has come."""
        return self.stages[self._begin :]

    def slot_at(self, num_tokens: int) -> Tensor:
        """(B, L) token of each original position where the latest pass had ``num_tokens``, −1 if it was dropped.

        (1, L) if nothing has been reduced yet, as in a dense pass inside ``reduction_disabled``.

        Raises:
            InputError: It never had so many.
        """
        latest = self.latest
        for stage in latest:
            if stage.num_kept == num_tokens:
                return stage.slot
        batch, length = latest[0].slot.shape if latest else (1, self.num_tokens)
        if num_tokens != length:
            known = ", ".join(map(str, (length, *(stage.num_kept for stage in latest))))
            raise InputError(
                f"{num_tokens} tokens were given, but the traced pass had {known}, special tokens included; give an "
                "intermediate of that pass, (B, tokens, ...), with all of its tokens, and mtrkit.trace_reduction the "
                "size of its input if it is not the one that the model was reduced for"
            )
        return torch.arange(length).expand(batch, length)

    def sequence(self, intermediate: Any, fill: float = 0.0) -> Tensor:
        """Any intermediate of the latest pass on the full sequence, special tokens included; gradients flow.

        Each place of a merged token gets the merged token's numbers.

        Args:
            intermediate: (B, L') or (B, L', D): something for each token of a block, such as a mixer's output or a
                score. Or what a hook of a block sees: ``(hidden, residual)``, in which a
                :class:`~mtrkit.types.ReducedStream` may stand for the residual, or such a stream alone; the result
                is then hidden + residual, and a dropped token keeps its last features.
            fill: What dropped tokens get otherwise.

        Returns:
            (B, L) or (B, L, D).
        """
        if isinstance(intermediate, ReducedStream):
            with torch.set_grad_enabled(torch.is_grad_enabled() and intermediate.records):
                return restore_sum(intermediate)
        if isinstance(intermediate, tuple):
            hidden, residual = intermediate
            if isinstance(residual, ReducedStream):
                return stream_tokens(hidden, residual)
            intermediate = hidden if residual is None else hidden + residual
        tokens: Tensor = intermediate
        slot = self.slot_at(tokens.shape[1]).to(tokens.device)
        if len(slot) not in (1, len(tokens)):
            raise InputError(f"{len(tokens)} samples were given, but the traced pass had {len(slot)}")
        slot = slot.view(*slot.shape, *[1] * (tokens.dim() - 2)).expand(len(tokens), -1, *tokens.shape[2:])
        return torch.where(slot < 0, fill, tokens.gather(1, slot.clamp(min=0)))

    def groups(self, sample: int) -> list[list[int]]:
        """Original positions that ended up in each final token of one image, in sequence order."""
        slot = self.slot[sample]
        return [torch.nonzero(slot == token).flatten().tolist() for token in range(int(slot.max()) + 1)]

    def record(self, index: int, state: BlockState, decision: Decision, stream: ReducedStream) -> None:
        """Record one reduction; it is called after the block with this index from 0, also if nothing leaves."""
        if index <= self._asked:  # a pass goes from block to block
            self._begin = len(self.stages)
        self._asked, self._shape = index, (stream.slot.shape[0], stream.slot.shape[1])
        if decision.token_map.num_kept == state.num_tokens:
            return
        self.stages.append(
            TraceStage(
                index + 1,
                None if decision.score is None else decision.score.detach().cpu(),
                original_positions(stream).cpu(),
                None if decision.split is None else Split(*(group.cpu() for group in decision.split)),
                decision.token_map.follow(stream.slot).cpu(),
                decision.token_map.kept.cpu(),
            )
        )
