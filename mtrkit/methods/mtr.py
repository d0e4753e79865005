"""MTR: merge each of the least important tokens into its most similar middling token.

Importance is the scan's step size Δ, which the block has computed anyway; nothing is trained.

Source: Ma et al., "Training-free Token Reduction for Vision Mamba", arXiv:2507.14042. Where the paper leaves
a point open, it is an option here and its comment says so.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mtrkit.methods.base import Widths, register_method
from mtrkit.methods.links import LinkConfig, append_metric, rank_links
from mtrkit.methods.signals import Indicator, importance, read_by, read_signal, scored_by, scoring_flops, width_of
from mtrkit.ops import (
    ChannelReduction,
    match_nearest,
    pair_similarity,
    split_and_merge,
    split_by_rank,
    successive_weights,
    token_map,
)
from mtrkit.scan import Chain
from mtrkit.types import BlockState, Decision, Split, TokenMap

Operation = Literal["merge", "prune", "hybrid"]


@dataclass(frozen=True)
class MTRConfig(LinkConfig):
    """Options of the ``"mtr"`` method; the defaults are the paper's where it says.

    Attributes:
        indicator: What importance is read from: Δ (the paper), B, C, the mixer output X, or the similarity
            to the class token (table 3).
        operation: Merge the source tokens (the paper), drop them, or drop the half of them with the less
            similar partner and merge the others (table 4; which half is open).
        channels: How a signal's channels become one score. The mean for Δ is the paper's, for the other
            indicators it is open.
        metric: Tensor that similarity is measured on, such as the mixer output X or the features behind it
            (open).
        similarity: Measure of similarity (open).
        importance_weight: Moves which half ``"hybrid"`` merges; the groups are by importance as it is.
        average: When several sources choose one target: the mean of all of them, or one after the other,
            each halving what is there (open).
    """

    indicator: Indicator = "delta"
    channels: ChannelReduction = "mean"
    operation: Operation = "merge"
    average: Literal["group", "successive"] = "group"

    @property
    def reads(self) -> frozenset[str]:
        """The signals behind the indicator and, if anything is matched, the metric."""
        scored = scored_by(self.indicator, self.channels)
        return scored if self.operation == "prune" else scored | read_by(self.metric)

    @property
    def counts_links(self) -> bool:
        """Tokens leave by their importance."""
        return False

    @property
    def fits_chain(self) -> bool:
        """With the options that the paper gives, beside those of the links."""
        plain = (self.operation, self.average) == ("merge", "group")
        return super().fits_chain and plain and (self.indicator, self.channels) == ("delta", "mean")

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Scoring (one addition per channel), normalising, matching at 2 per multiply-add, and merging."""
        r, width = num_tokens - num_kept, width_of(self.metric, widths)
        score = scoring_flops(self.indicator, num_tokens, widths)
        if self.operation == "prune":
            return score
        candidates = num_tokens - r  # targets and sources: all but the r best
        match = 6 * candidates * width + 2 * width * r * (candidates - r)
        return score + match + r * widths.dim


def _append(chain: Chain, state: BlockState, num_kept: int, config: MTRConfig) -> TokenMap:
    """:func:`mtr` in a chain."""
    score, metric = state.signals.delta_mean, append_metric(chain, state, config)
    assert score is not None  # it is what the config reads
    return split_and_merge(chain, score, state.special, metric, state.num_tokens - num_kept)


@register_method("mtr", config=MTRConfig, max_share=0.5, source="Ma et al. 2025, arXiv:2507.14042", append=_append)
def mtr(state: BlockState, num_kept: int, config: MTRConfig) -> Decision:
    """Merge the r tokens of smallest Δ into the most similar of those that are neither they nor the r best."""
    r = state.num_tokens - num_kept
    score = importance(state, config.indicator, config.channels)
    candidates = state.num_tokens - state.special.shape[1]
    # The paper's k stays below one half; where an explicit count reaches it, one target is left over.
    split = split_by_rank(score, state.special, top=min(r, candidates - r - 1), bottom=r)
    return Decision(_merge_or_drop(state, split, config), score, split)


def _merge_or_drop(state: BlockState, split: Split, config: MTRConfig) -> TokenMap:
    kept = torch.cat([split.keep, split.dst], dim=1)
    if config.operation == "prune":
        return token_map(state.num_tokens, kept)
    metric = read_signal(state, config.metric)
    src, target = split.src, match_nearest(metric, split.src, split.dst, config.similarity)
    if config.operation == "hybrid":  # merges the half, rounded up, that loses least
        similarity = pair_similarity(metric, src, target, config.similarity)
        src, target, _ = rank_links(state, src, target, similarity, (src.shape[1] + 1) // 2, config)
    merged = token_map(state.num_tokens, kept, src, target)
    return merged if config.average == "group" else merged.weighted(successive_weights(merged))
