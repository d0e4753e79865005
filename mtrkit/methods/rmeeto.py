"""R-MeeTo: ToMe's merging for Mamba, with the order of the tokens restored, and every variant of its ablations.

Source: Shi et al., "Faster Vision Mamba is Rebuilt in Minutes via Merged Token Re-training", arXiv:2412.12496. It
reduces before every second block by what the block before has computed; here that is after blocks 2, 4, …
(``layers=EveryNth(2)``), by what the same block has computed. With ``r=5`` and ``r=11`` it is the paper's Vim-Ti
and Vim-S.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.methods.base import Widths, bounded, register_method
from mtrkit.methods.bipartite import Halves, append_odd_even, odd_even, survivors
from mtrkit.methods.links import LinkConfig, rank_links
from mtrkit.methods.signals import read_signal, width_of
from mtrkit.ops import (
    Links,
    comparable,
    in_sequence,
    match_nearest,
    move_special,
    noise,
    pair_similarity,
    permutation,
    scaled_slots,
    shuffled,
    strongest_links,
    token_map,
    without,
)
from mtrkit.schedule import bipartite_cost
from mtrkit.types import BlockState, Decision, TokenMap

_GROUPING, _SOURCES, _PARTNER, _SHUFFLE = range(4)  # what chance is asked for


@dataclass(frozen=True)
class RMeeToConfig(LinkConfig):
    """Options of the ``"rmeeto"`` method; the defaults are the paper's.

    Randomness is a function of ``seed``, the number of tokens and their ranks: the same for every image
    and every run, and another one at each reducing block. Take several seeds to see its spread.

    Attributes:
        metric: Tensor that similarity is measured on: the mixer output X (the paper's default), Δ, B, C, or one
            it does not have, such as y. Δ is the scan's, after bias and softplus; the released code takes it
            before, and adds the two directions misaligned.
        similarity: Cosine, or the negative L1 or squared L2 distance, all between unit vectors.
        kth: Link each source to its k-th most similar target, and rank links by that similarity.
        grouping: Sources and targets are every second token in turn, the front and the back half, or two random
            halves. Which half is the source in ``"front_behind"`` is open: the front, as the even tokens are.
        sources: Act on the strongest links, or on those of random sources (random-r).
        partner: The target by similarity, or any of the targets by chance (random pair).
        operation: Merge the sources, or drop them.
        merge: ``"sum"`` is the mean of all the patches that the tokens stand for; ``"mean"`` forgets earlier
            merges; ``"max"`` and ``"min"`` go channel by channel.
        order: Survivors in sequence order; left as matching leaves them, remaining sources by falling
            similarity before the targets; or in sequence order after a random share of the tokens has
            changed places before matching.
        shuffle_ratio: The share for ``order="shuffle"``, of the tokens that are not special.
        class_position: Where special tokens stand afterwards: after as many tokens as have survived in front
            of them, per image, or at their position times the share of tokens left, rounded down: the
            released code's approximation, which drifts to the front.
        seed: Of all that is random, from 0 to 2³² − 1.
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and
            ``channels``.
    """

    kth: int = bounded(1, least=1)
    grouping: Literal["odd_even", "front_behind", "random"] = "odd_even"
    sources: Literal["best", "random"] = "best"
    partner: Literal["nearest", "random"] = "nearest"
    operation: Literal["merge", "prune"] = "merge"
    merge: Literal["sum", "mean", "max", "min"] = "sum"
    order: Literal["restore", "leave", "shuffle"] = "restore"
    shuffle_ratio: float = bounded(0.1, least=0, most=1)
    class_position: Literal["exact", "floor"] = "exact"
    seed: int = bounded(0, least=0, most=2**32 - 1)

    @property
    def counts_links(self) -> bool:
        """Unless tokens leave by chance."""
        return self.sources == "best"

    @property
    def fits_chain(self) -> bool:
        """With the paper's options, beside those of the links."""
        links = (self.kth, self.grouping, self.sources, self.partner)
        tokens = (self.operation, self.merge, self.order, self.class_position)
        plain = (*links, *tokens) == (1, "odd_even", "best", "nearest", "merge", "sum", "restore", "exact")
        return super().fits_chain and plain

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """The released counter's: normalising, matching half of the tokens with the others, merging.

        Random variants are charged like the method that they are to be compared with.
        """
        matching = bipartite_cost(width_of(self.metric, widths), widths.dim)
        cost = matching(num_tokens, num_kept) + self.weighing_flops(num_tokens, widths)
        return cost - (num_tokens - num_kept) * widths.dim if self.operation == "prune" else cost


@register_method(
    "rmeeto", config=RMeeToConfig, max_share=0.5, source="Shi et al. 2024, arXiv:2412.12496", append=append_odd_even
)
def rmeeto(state: BlockState, num_kept: int, config: RMeeToConfig) -> Decision:
    """Merge the r most similar pairs of an even and an odd token, keep the order, and follow what each stands for."""
    sequence = in_sequence(state.hidden)
    if config.order == "shuffle":
        sequence = shuffled(sequence, state.special, config.shuffle_ratio, config.seed, _SHUFFLE)
    halves = _halves(without(sequence, state.special), config)
    links = _links(state, halves, state.num_tokens - num_kept, config)
    kept = _arranged(sequence, links, halves, state.special, config)
    if config.operation == "prune":
        return Decision(token_map(state.num_tokens, kept, ordered=False))
    to = token_map(state.num_tokens, kept, links.src, links.target, ordered=False)
    return Decision(_merging(to, state.size, config))


def _halves(tokens: Tensor, config: RMeeToConfig) -> Halves:
    """Sort the tokens (B, n) that are not special into sources and targets, the sources one more if n is odd."""
    if config.grouping == "odd_even":
        return odd_even(tokens)
    if config.grouping == "random":
        order = permutation(tokens.shape[1], config.seed, _GROUPING, tokens.device)
        halves = torch.sort(order[0::2]).values, torch.sort(order[1::2]).values
        return Halves(tokens[:, halves[0]], tokens[:, halves[1]])
    front = (tokens.shape[1] + 1) // 2
    return Halves(tokens[:, :front], tokens[:, front:])


def _links(state: BlockState, halves: Halves, r: int, config: RMeeToConfig) -> Links:
    metric, (src, dst) = read_signal(state, config.metric), halves
    if config.similarity != "cosine":
        metric = F.normalize(comparable(metric), dim=-1)
    target = match_nearest(metric, src, dst, config.similarity, config.kth)
    if config.sources == "random":
        chance = noise(state.num_tokens, config.seed, _SOURCES, src.device)[: src.shape[1]]
        links = strongest_links(src, target, chance.expand_as(src), r)
    else:
        links = rank_links(state, src, target, pair_similarity(metric, src, target, config.similarity), r, config)
    if config.partner == "random":
        chance = noise(state.num_tokens, config.seed, _PARTNER, src.device)[: links.src.shape[1]]
        return Links(links.src, dst[:, chance % dst.shape[1]], links.rest)
    return links


def _arranged(sequence: Tensor, links: Links, halves: Halves, special: Tensor, config: RMeeToConfig) -> Tensor:
    """The tokens that stay, (B, L'), in the order in which the next block sees them."""
    kept = survivors(sequence, links, halves.dst, special, config.order)
    if config.class_position == "exact":
        return kept
    before, after = sequence.shape[1], kept.shape[1]
    if config.order == "leave":  # the released code then holds the class token among the remaining sources
        before, after = halves.src.shape[1], links.rest.shape[1]
    return move_special(kept, special, scaled_slots(special, after, before, kept.shape[1]))


def _merging(to: TokenMap, size: Tensor, config: RMeeToConfig) -> TokenMap:
    if config.merge == "sum":
        return to.weighted(size)
    return to.combining(config.merge)
