"""Neighbour merging: tokens merge only with the token beside them in the sequence, which costs O(L·D).

Source: the idea of "Sequential Token Merging", arXiv:2509.22691; what follows is written from that description, and
what it leaves open is an option.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrkit.methods.base import Widths, register_method
from mtrkit.methods.links import LinkConfig, append_metric, rank_links
from mtrkit.methods.signals import read_signal, width_of
from mtrkit.ops import in_sequence, match_neighbors, merge_neighbors, token_map, without
from mtrkit.scan import Chain
from mtrkit.types import BlockState, Decision, TokenMap


@dataclass(frozen=True)
class NeighborConfig(LinkConfig):
    """Options of the ``"neighbor"`` method.

    Two tokens that an option keeps apart merge only where so many have to leave that nothing else is left.

    Attributes:
        metric: Tensor that similarity is measured on (open).
        similarity: Measure of similarity (open).
        across_special: Let tokens merge that have a special token between them (open; by default not, as the
            scan does not see them side by side).
        across_frames: Let the last tokens of a clip's frame merge with the first of the next, which the scan sees side
            by side but which show different places (open; by default not).
        protect_class_neighbors: Keep the tokens beside a special token as they are, since that token reads
            them first (open).
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and
            ``channels``.
    """

    across_special: bool = False
    across_frames: bool = False
    protect_class_neighbors: bool = False

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Normalising, one comparison per token at 2 per multiply-add, merging."""
        width, r = width_of(self.metric, widths), num_tokens - num_kept
        return num_tokens * 8 * width + r * widths.dim + self.weighing_flops(num_tokens, widths)


def append_neighbor(chain: Chain, state: BlockState, num_kept: int, config: NeighborConfig) -> TokenMap:
    """:func:`neighbor` in a chain."""
    metric, apart = append_metric(chain, state, config), (config.across_special, config.protect_class_neighbors)
    return merge_neighbors(chain, metric, state.special, state.num_tokens - num_kept, *apart).weighted(state.size)


@register_method(
    "neighbor", config=NeighborConfig, max_share=0.5, source="after arXiv:2509.22691", append=append_neighbor
)
def neighbor(state: BlockState, num_kept: int, config: NeighborConfig) -> Decision:
    """Merge the r even tokens that are most similar to a neighbour, weighted by the patches each stands for."""
    sequence = in_sequence(state.hidden)
    tokens = without(sequence, state.special)
    metric, blocked = read_signal(state, config.metric), _blocked(tokens, state, config)
    target, similarity = match_neighbors(metric, tokens, blocked, config.similarity)
    links = rank_links(state, tokens[:, 0::2], target, similarity, state.num_tokens - num_kept, config)
    to = token_map(state.num_tokens, without(sequence, links.src), links.src, links.target)
    return Decision(to.weighted(state.size))


def _blocked(tokens: Tensor, state: BlockState, config: NeighborConfig) -> Tensor:
    """(B, n − 1), true between each token of (B, n) and the next where the two should stay apart."""
    blocked = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)
    if not config.across_special:
        blocked = blocked | (tokens.diff(dim=1) > 1)
    if not config.across_frames and state.frame is not None:
        blocked = blocked | (state.frame.gather(1, tokens).diff(dim=1) != 0)
    if config.protect_class_neighbors:
        beside = ((tokens[:, :, None] - state.special[:, None]).abs() == 1).any(dim=2)
        blocked = blocked | beside[:, 1:] | beside[:, :-1]
    return blocked
