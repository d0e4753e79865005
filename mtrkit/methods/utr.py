"""UTR: merge the less important half's most similar tokens into the other half, or in hidden states drop some.

Source: Zhan et al., "Rethinking Token Reduction for State Space Models", EMNLP 2024, arXiv:2410.14725. Written for
language models; MTR (arXiv:2507.14042) compares with it on Vision Mamba. The released code sorts its metric channel
by channel, so that rows are no longer tokens; this is the paper's text.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtrkit.methods.base import Widths, bounded, register_method
from mtrkit.methods.links import LinkConfig, rank_links
from mtrkit.methods.signals import importance, read_by, read_signal, scored_by, scoring_flops, width_of
from mtrkit.ops import (
    Links,
    in_sequence,
    match_nearest,
    pair_similarity,
    split_by_rank,
    successive_weights,
    token_map,
    without,
)
from mtrkit.schedule import bipartite_cost
from mtrkit.types import BlockState, Decision, TokenMap

Operation = Literal["merge", "prune", "hybrid"]


@dataclass(frozen=True)
class UTRConfig(LinkConfig):
    """Options of the ``"utr"`` method; the defaults are the paper's where it says.

    Attributes:
        indicator: What importance is read from: y, the scan's output. Before or after the gate is not said (here
            before), nor how two directions are combined (here added). The released code reads X.
        channels: The mean of the positive parts is the paper's; it tries the plain mean, L1 and L2 as well.
        metric: Tensor that similarity is measured on (open).
        similarity: Measure of similarity; cosine is the paper's.
        hidden: What happens to the chosen tokens in the hidden states: merged into their partner, dropped, or
            some of each.
        residual: What happens to them in the residual.
        pruned_share: In ``"hybrid"``, the share of the links whose source is dropped, rounded down.
        pruned: Which those are: the links that are least similar, or most (open; a mean of unlike tokens is
            like neither).
        average: When several sources choose one target: the mean of all of them, or one after the other,
            each halving what is there (open).
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`.
    """

    indicator: Literal["y", "X"] = "y"
    hidden: Operation = "hybrid"
    residual: Operation = "merge"
    pruned_share: float = bounded(0.5, least=0, most=1)
    pruned: Literal["least_similar", "most_similar"] = "least_similar"
    average: Literal["group", "successive"] = "group"

    @property
    def reads(self) -> frozenset[str]:
        """The signals behind the indicator and the metric."""
        return scored_by(self.indicator, self.channels) | read_by(self.metric)

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Scoring (one addition per channel), and half of the tokens matched with the others as R-MeeTo counts."""
        matching = bipartite_cost(width_of(self.metric, widths), widths.dim)
        return scoring_flops(self.indicator, num_tokens, widths) + matching(num_tokens, num_kept)


@register_method("utr", config=UTRConfig, max_share=0.5, source="Zhan et al. 2024, arXiv:2410.14725")
def utr(state: BlockState, num_kept: int, config: UTRConfig) -> Decision:
    """Act on the r most similar links from the half of small clipped scan output to the other half."""
    metric = read_signal(state, config.metric)
    score = importance(state, config.indicator, config.channels)
    half = (state.num_tokens - state.special.shape[1]) // 2
    _, dst, src = split_by_rank(score, state.special, top=0, bottom=half)
    target = match_nearest(metric, src, dst, config.similarity)
    similarity = pair_similarity(metric, src, target, config.similarity)
    links = rank_links(state, src, target, similarity, state.num_tokens - num_kept, config)
    kept = without(in_sequence(state.hidden), links.src)
    residual, hidden = (_acted(kept, links, operation, config) for operation in (config.residual, config.hidden))
    return Decision(residual, score, hidden_map=hidden)


def _acted(kept: Tensor, links: Links, operation: Operation, config: UTRConfig) -> TokenMap:
    """The map in which some links are merged and the sources of the others are dropped."""
    r = links.src.shape[1]
    pruned = {"merge": 0, "prune": r, "hybrid": int(config.pruned_share * r)}[operation]
    merged = slice(r - pruned) if config.pruned == "least_similar" else slice(pruned, r)
    to = token_map(kept.shape[1] + r, kept, links.src[:, merged], links.target[:, merged])
    return to if config.average == "group" else to.weighted(successive_weights(to))
