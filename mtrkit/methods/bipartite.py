"""The step that ToMe, R-MeeTo and PuMer share: halve the tokens, link each to the other half, act on the best links.

Source: Bolya et al., "Token Merging", arXiv:2210.09461, section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.methods.links import LinkConfig, append_metric, rank_links
from mtrkit.ops import (
    Links,
    exact_slots,
    hold_special,
    in_sequence,
    match_nearest,
    merge_by_turns,
    pair_similarity,
    token_map,
    without,
)
from mtrkit.scan import Chain
from mtrkit.types import BlockState, TokenMap


class Halves(NamedTuple):
    """The tokens that are not special, as those which may leave and those which may receive."""

    src: Tensor  # (B, s) int64
    dst: Tensor  # (B, t) int64


def odd_even(tokens: Tensor) -> Halves:
    """Every second token of (B, n), beginning with the first, may leave."""
    return Halves(tokens[:, 0::2], tokens[:, 1::2])


def merge_odd_even(
    state: BlockState, num_kept: int, metric: Tensor, config: LinkConfig, order: str, whole: bool = False
) -> TokenMap:
    """Merge the sources of the best links into their partners, every second token being a source.

    Args:
        state: The block that has just run.
        num_kept: L', tokens to keep.
        metric: (B, L, M), what similarity is measured on.
        config: How links are ranked.
        order: ``"restore"`` or ``"leave"``, see :func:`survivors`.
        whole: Count the special tokens in front when taking every second token. If there are any, ``"leave"``
            then leaves the remaining sources in sequence order.
    """
    sequence = in_sequence(state.hidden)
    src, dst = odd_even(without(sequence, state.special))
    num_special = state.special.shape[1]
    if whole and num_special % 2:  # an odd number in front moves the patches on by one
        src, dst = dst, src
    target = match_nearest(metric, src, dst, config.similarity)
    similarity = pair_similarity(metric, src, target, config.similarity)
    links = rank_links(state, src, target, similarity, state.num_tokens - num_kept, config)
    if whole and num_special:
        links = Links(links.src, links.target, torch.sort(links.rest, dim=1).values)
    kept = survivors(sequence, links, dst, state.special, order)
    return token_map(state.num_tokens, kept, links.src, links.target, ordered=False)


def append_odd_even(chain: Chain, state: BlockState, num_kept: int, config: LinkConfig) -> TokenMap:
    """:func:`merge_odd_even` in a chain, in order, weighted by the tokens' sizes."""
    metric = append_metric(chain, state, config)
    return merge_by_turns(chain, metric, state.special, state.num_tokens - num_kept).weighted(state.size)


def survivors(sequence: Tensor, links: Links, dst: Tensor, special: Tensor, order: str) -> Tensor:
    """The tokens that stay, (B, L'), in the order in which the next block shall see them.

    Args:
        sequence: (B, L) the tokens in the order in which they stand.
        links: Whose sources leave.
        dst: (B, t) the tokens that receive.
        special: (B, S) tokens that stand where the sequence has them, among as many tokens before as survive.
        order: As the sequence has them (``"restore"``), or the remaining sources by falling similarity and
            then the targets (``"leave"``), as matching leaves them.
    """
    ordered = without(sequence, links.src)
    if order != "leave":
        return ordered
    return hold_special(torch.cat([links.rest, dst], dim=1), special, exact_slots(ordered, special))
