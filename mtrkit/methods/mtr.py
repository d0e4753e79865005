"""MTR: merge each of the least important tokens into its most similar middling token.

Importance is the scan's step size Δ, which the block has computed anyway; nothing is trained.

Source: Ma et al., "Training-free Token Reduction for Vision Mamba", arXiv:2507.14042. Where the paper leaves
a point open, it is an option here and its comment says so.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtrkit.methods.base import MethodConfig, Widths, register_method
from mtrkit.ops import (
    ChannelReduction,
    Similarity,
    channel_score,
    class_score,
    match_nearest,
    split_by_rank,
    token_map,
)
from mtrkit.types import BlockState, Decision, Split, TokenMap

Indicator = Literal["delta", "B", "C", "X", "cls"]
Operation = Literal["merge", "prune", "hybrid"]

_SIGNAL = {"delta": "delta", "B": "ssm_B", "C": "ssm_C"}


@dataclass(frozen=True)
class MTRConfig(MethodConfig):
    """Options of the ``"mtr"`` method; the defaults are the paper's where it says.

    Attributes:
        indicator: What importance is read from: Δ (the paper), B, C, the mixer output X, or the similarity
            to the class token (table 3).
        operation: Merge the source tokens (the paper), drop them, or drop the half of them with the less
            similar partner and merge the others (table 4; which half is open).
        channels: How a signal's channels become one score. The mean for Δ is the paper's, for the other
            indicators it is open.
        metric: Tensor that similarity is measured on: the mixer output or the residual stream (open).
        similarity: Measure of similarity (open).
        average: When several sources choose one target: the mean of all of them, or one after the other,
            each halving what is there (open).
    """

    indicator: Indicator = "delta"
    operation: Operation = "merge"
    channels: ChannelReduction = "mean"
    metric: Literal["hidden", "features"] = "hidden"
    similarity: Similarity = "cosine"
    average: Literal["group", "successive"] = "group"

    @property
    def reads(self) -> frozenset[str]:
        """The signal behind the indicator; X and the class token are always there."""
        return frozenset({_SIGNAL[self.indicator]} if self.indicator in _SIGNAL else ())

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Scoring (one addition per channel), normalising, matching at 2 per multiply-add, and merging."""
        read = {
            "delta": widths.inner,
            "B": widths.state,
            "C": widths.state,
            "X": widths.dim,
            "cls": 8 * widths.dim,
        }
        r = num_tokens - num_kept
        score = num_tokens * read[self.indicator]
        if self.operation == "prune":
            return score
        candidates = num_tokens - r  # targets and sources: all but the r best
        match = 6 * candidates * widths.dim + 2 * widths.dim * r * (candidates - r)
        return score + match + r * widths.dim


@register_method("mtr", config=MTRConfig, max_share=0.5, source="Ma et al. 2025, arXiv:2507.14042")
def mtr(state: BlockState, num_kept: int, config: MTRConfig) -> Decision:
    """Merge the r tokens of smallest Δ into the most similar of those that are neither they nor the r best."""
    r = state.num_tokens - num_kept
    score = _importance(state, config)
    candidates = state.num_tokens - state.special.shape[1]
    # The paper's k stays below one half; where an explicit count reaches it, one target is left over.
    split = split_by_rank(score, state.special, top=min(r, candidates - r - 1), bottom=r)
    return Decision(_merge_or_drop(state, split, config), score, split)


def _importance(state: BlockState, config: MTRConfig) -> Tensor:
    if config.indicator == "cls":
        return class_score(state.features, state.special)
    signal = state.hidden if config.indicator == "X" else getattr(state, _SIGNAL[config.indicator])
    return channel_score(signal, config.channels)


def _merge_or_drop(state: BlockState, split: Split, config: MTRConfig) -> TokenMap:
    kept = torch.cat([split.keep, split.dst], dim=1)
    if config.operation == "prune":
        return token_map(state.num_tokens, kept)
    match = match_nearest(getattr(state, config.metric), split.src, split.dst, config.similarity)
    src, target = split.src, match.target
    if config.operation == "hybrid":
        src, target = _more_similar_half(src, target, match.similarity)
    merged = token_map(state.num_tokens, kept, src, target)
    return merged if config.average == "group" else merged.weighted(successive_weights(merged))


def _more_similar_half(src: Tensor, target: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Keep for merging the half, rounded up, of the links (B, s) that loses least; ties to the earlier."""
    half = (src.shape[1] + 1) // 2
    best = torch.sort(similarity, dim=1, descending=True, stable=True).indices[:, :half]
    best = torch.sort(best, dim=1).values
    return src.gather(1, best), target.gather(1, best)


def successive_weights(token_map: TokenMap) -> Tensor:
    """Weights (B, L, 1) that make the mean at a slot equal to merging its sources one after the other.

    The target is averaged with its first source in sequence order, the result with the second, and so on:
    of n sources the last weighs 1/2, the one before 1/4, and the first as much as the target, 2⁻ⁿ.
    """
    slot = token_map.slot.gather(1, token_map.merged)  # (B, m), merged in sequence order
    later = torch.triu(slot[:, :, None] == slot[:, None, :], diagonal=1).sum(dim=2)  # sources after this one
    every = torch.arange(token_map.num_kept, device=slot.device)
    sources = (every[:, None] == slot[:, None, :]).sum(dim=2)  # (B, L')
    weight = torch.ones_like(token_map.slot, dtype=torch.float32)
    weight = weight.scatter(1, token_map.kept, 0.5 ** sources.float())
    return weight.scatter(1, token_map.merged, 0.5 ** (later + 1).float())[..., None]
