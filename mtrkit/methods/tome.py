"""ToMe: merge the most similar pairs between every second token and the others.

Source: Bolya et al., "Token Merging: Your ViT but Faster", arXiv:2210.09461. It was made for attention; Mamba has
no keys to compare, no attention to correct by the tokens' sizes, and minds their order.
"""

from dataclasses import dataclass
from typing import Literal

from mtrkit.methods.base import Widths, register_method
from mtrkit.methods.bipartite import merge_odd_even
from mtrkit.methods.links import LinkConfig
from mtrkit.methods.signals import read_signal, width_of
from mtrkit.schedule import bipartite_cost
from mtrkit.types import BlockState, Decision


@dataclass(frozen=True)
class ToMeConfig(LinkConfig):
    """Options of the ``"tome"`` method.

    Attributes:
        metric: Tensor that similarity is measured on. The paper's keys exist in attention blocks only; for
            Mamba it is open, and X what R-MeeTo takes.
        similarity: Measure of similarity; cosine is the paper's.
        order: Survivors in sequence order, or left as matching leaves them: the remaining sources by falling
            similarity, then the targets. The paper leaves them, which attention does not notice and a scan
            does.
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and
            ``channels``.
    """

    order: Literal["restore", "leave"] = "restore"

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """As R-MeeTo counts it: normalising, matching half of the tokens with the others, merging."""
        cost = bipartite_cost(width_of(self.metric, widths), widths.dim)
        return cost(num_tokens, num_kept) + self.weighing_flops(num_tokens, widths)


@register_method("tome", config=ToMeConfig, max_share=0.5, source="Bolya et al. 2023, arXiv:2210.09461")
def tome(state: BlockState, num_kept: int, config: ToMeConfig) -> Decision:
    """Merge the r most similar pairs of an even and an odd token, each weighted by the patches it stands for."""
    to = merge_odd_even(state, num_kept, read_signal(state, config.metric), config, config.order)
    return Decision(to.weighted(state.size))
