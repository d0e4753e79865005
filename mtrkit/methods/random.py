"""Random: remove tokens by chance, the control that every method has to beat.

Source: the controls of R-MeeTo, arXiv:2412.12496, and of DyVM, arXiv:2504.04787. Random sources, partners and
groupings within a matching are options of ``"rmeeto"``.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mtrkit.methods.base import MethodConfig, Widths, bounded, register_method
from mtrkit.methods.signals import Signal, read_by, read_signal, width_of
from mtrkit.ops import Similarity, in_sequence, match_nearest, permutation, token_map, without
from mtrkit.types import BlockState, Decision


@dataclass(frozen=True)
class RandomConfig(MethodConfig):
    """Options of the ``"random"`` method.

    The choice is a function of ``seed``, the number of tokens and their ranks: the same for every image and every
    run, and another one at each reducing block. Take several seeds to see its spread.

    Attributes:
        operation: Drop the tokens, or merge each into the most similar of those that stay.
        metric: Tensor that similarity is measured on when merging.
        similarity: Measure of similarity when merging.
        seed: From 0 to 2³² − 1.
    """

    operation: Literal["prune", "merge"] = "prune"
    metric: Signal = "X"
    similarity: Similarity = "cosine"
    seed: int = bounded(0, least=0, most=2**32 - 1)

    @property
    def reads(self) -> frozenset[str]:
        """The signal behind the metric if anything is matched."""
        return read_by(self.metric) if self.operation == "merge" else frozenset()

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Nothing; when merging, normalising, matching at 2 per multiply-add, and merging."""
        if self.operation == "prune":
            return 0
        r, width = num_tokens - num_kept, width_of(self.metric, widths)
        return 6 * num_tokens * width + 2 * width * r * num_kept + r * widths.dim


@register_method("random", config=RandomConfig, max_share=1.0, source="control of arXiv:2412.12496")
def random(state: BlockState, num_kept: int, config: RandomConfig) -> Decision:
    """Drop r tokens by chance."""
    sequence, r = in_sequence(state.hidden), state.num_tokens - num_kept
    tokens = without(sequence, state.special)
    order = permutation(tokens.shape[1], config.seed, device=tokens.device)
    src = tokens[:, order[:r]]
    kept = without(sequence, src)
    if config.operation == "prune":
        return Decision(token_map(state.num_tokens, kept))
    dst = without(sequence, torch.cat([state.special, src], dim=1))
    target = match_nearest(read_signal(state, config.metric), src, dst, config.similarity)
    return Decision(token_map(state.num_tokens, kept, src, target).weighted(state.size))
