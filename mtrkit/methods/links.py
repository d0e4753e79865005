"""What all methods share that pair a token which may leave with one that may receive it."""

from dataclasses import dataclass

from torch import Tensor

from mtrkit.methods.base import MethodConfig, Widths, bounded
from mtrkit.methods.signals import Indicator, Signal, importance, read_by, scored_by, scoring_flops
from mtrkit.ops import ChannelReduction, Links, Similarity, add_in_chain, standardize, strongest_links
from mtrkit.scan import Chain
from mtrkit.types import BlockState


@dataclass(frozen=True)
class LinkConfig(MethodConfig):
    """Options of methods that rank links between tokens.

    Attributes:
        metric: Tensor that similarity is measured on.
        similarity: Cosine, or the negative L1 or squared L2 distance.
        importance_weight: Rank links by similarity minus this multiple of the source's importance, which is
            standardised over the sources of a sample, so that 0.1 means the same for every indicator. 0, the
            default and what the papers do, ranks by similarity alone.
        indicator: What importance is read from.
        channels: How the indicator's channels become one number.
    """

    metric: Signal = "X"
    similarity: Similarity = "cosine"
    importance_weight: float = bounded(0.0, least=0)
    indicator: Indicator = "y"
    channels: ChannelReduction = "clipped"

    @property
    def reads(self) -> frozenset[str]:
        """The signal behind the metric, and the indicator's if it weighs."""
        weighs = scored_by(self.indicator, self.channels) if self.importance_weight else frozenset()
        return read_by(self.metric) | weighs

    @property
    def counts_links(self) -> bool:
        """Every method that acts on the strongest links does."""
        return True

    @property
    def fits_chain(self) -> bool:
        """If links rank by cosines of tokens alone."""
        return self.similarity == "cosine" and not self.importance_weight and self.metric in ("X", "features")

    def weighing_flops(self, num_tokens: int, widths: Widths) -> int:
        """What it costs that importance weighs."""
        return scoring_flops(self.indicator, num_tokens, widths) if self.importance_weight else 0


def append_metric(chain: Chain, state: BlockState, config: LinkConfig) -> Tensor:
    """What a config that fits a chain compares tokens by."""
    return state.hidden if config.metric == "X" else add_in_chain(chain, state.residual, state.hidden)


def rank_links(state: BlockState, src: Tensor, target: Tensor, similarity: Tensor, r: int, config: LinkConfig) -> Links:
    """The r strongest of the links from ``src`` (B, s) to ``target`` (B, s) by their ``similarity`` (B, s).

    If the state has a limit, those of them that reach it.
    """
    if config.importance_weight:
        score = importance(state, config.indicator, config.channels).gather(1, src)
        similarity = similarity - config.importance_weight * standardize(score)
    r = r if state.limit is None else state.limit.leaving(similarity, r)
    return strongest_links(src, target, similarity, r)
