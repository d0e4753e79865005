"""PuMer as it is ported to Mamba: ToMe's matching with plain means, whatever a token's importance.

Source: Cao et al., "PuMer", arXiv:2305.17530, prunes image tokens by their relation to a text and merges the rest;
without a text only the merging is left. The port is that of UTR's comparison (arXiv:2410.14725), which MTR
(arXiv:2507.14042) cites without defining its own.
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
class PuMerConfig(LinkConfig):
    """Options of the ``"pumer"`` method.

    Attributes:
        metric: Tensor that similarity is measured on; the mixer output X is the port's.
        similarity: Measure of similarity; cosine is the port's.
        clipped: Set the metric's negative values to zero first, as the port does.
        order: Survivors in sequence order (the port), or left as matching leaves them (MTR's figure 1, much
            worse): the remaining sources by falling similarity, then the targets.
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and
            ``channels``.
    """

    clipped: bool = True
    order: Literal["restore", "leave"] = "restore"

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """As R-MeeTo counts it: normalising, matching half of the tokens with the others, merging."""
        cost = bipartite_cost(width_of(self.metric, widths), widths.dim)
        return cost(num_tokens, num_kept) + self.weighing_flops(num_tokens, widths)


@register_method("pumer", config=PuMerConfig, max_share=0.5, source="Cao et al. 2023, arXiv:2305.17530")
def pumer(state: BlockState, num_kept: int, config: PuMerConfig) -> Decision:
    """Merge the r most similar pairs of an even and an odd token into plain means."""
    metric = read_signal(state, config.metric)
    metric = metric.clamp(min=0) if config.clipped else metric
    return Decision(merge_odd_even(state, num_kept, metric, config, config.order))
