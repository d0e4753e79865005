"""Watch where the tokens of each image go, without changing a bit of the output."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtrkit.ops import original_positions
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
    """

    layer: int
    score: Tensor | None
    present: Tensor
    split: Split | None
    slot: Tensor


@dataclass
class Trace:
    """What happened in the forward passes since tracing began, the latest pass last.

    Attributes:
        stages: One entry per reduction; a second pass appends to those of the first.
    """

    stages: list[TraceStage] = field(default_factory=list)

    @property
    def slot(self) -> Tensor:
        """(B, L) final token of each original position in the latest pass, −1 if it was dropped."""
        return self.stages[-1].slot

    def groups(self, sample: int) -> list[list[int]]:
        """Original positions that ended up in each final token of one image, in sequence order."""
        slot = self.slot[sample]
        return [torch.nonzero(slot == token).flatten().tolist() for token in range(int(slot.max()) + 1)]

    def record(self, index: int, state: BlockState, decision: Decision, stream: ReducedStream) -> None:
        """Record one reduction; the engine calls it after the block with this index from 0."""
        del state
        self.stages.append(
            TraceStage(
                index + 1,
                None if decision.score is None else decision.score.detach().cpu(),
                original_positions(stream).cpu(),
                None if decision.split is None else Split(*(group.cpu() for group in decision.split)),
                decision.token_map.follow(stream.slot).cpu(),
            )
        )
