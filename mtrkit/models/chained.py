"""Tokens on their way through blocks and reductions that are jobs of one chain: one call of the compiled library."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mtrkit.ops import append_reduction
from mtrkit.scan import Chain, PlacedBlock, fused, narrow
from mtrkit.types import ChainedReduction, ReducedStream, Signals


class ChainedPass:
    """Hidden states and what travels beside them, which have no values before :meth:`run`.

    Args:
        hidden: (B, L, D) in front of the first block.
        given: The residual (B, L, D) of float32, what travels in its place, or ``None`` at the beginning.
    """

    def __init__(self, hidden: Tensor, given: Any) -> None:
        self.hidden, self.given = hidden, given
        self._chain, self._dtype = Chain(), hidden.dtype

    def append_blocks(self, blocks: Sequence[PlacedBlock], reads: frozenset[str] = frozenset()) -> None:
        """One block after the other; the signals that are read are the last one's."""
        self._reads = fused.in_order(reads)
        runs = self.given.runs() if isinstance(self.given, ReducedStream) else None
        self._mixer, self._total = fused.append_placed(
            self._chain, self.hidden, inner(self.given), blocks, self._reads, runs, self._dtype
        )

    def append_reduction(self, reduction: ChainedReduction) -> None:
        """What is behind the last of these blocks."""
        signals = Signals(delta_mean=self._mixer.delta_mean)
        self.hidden, self.given = append_reduction(
            self._chain, self._mixer.out, self._total, signals, self.given, reduction
        )
        narrow(self._chain, self.hidden, self._dtype)

    def run(self) -> tuple[Tensor, Any]:
        """What is handed on behind the last reduction."""
        self._chain.run()
        return self.hidden.to(self._dtype), self.given

    def run_to_mixer(self) -> tuple[Tensor, Tensor, Signals]:
        """The last block's mixer output, the sum before its norm, and its signals that are read."""
        self._chain.run()
        out, *values = self._mixer.results(self._reads)
        return out, self._total, fused.signals_by_name(self._reads, values)


def inner(given: Any) -> Any:
    """What the next block adds its input to."""
    return given.residual if isinstance(given, ReducedStream) else given
