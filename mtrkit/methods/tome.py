"""ToMe: merge the most similar pairs between every second token and the others.

Source: Bolya et al., "Token Merging: Your ViT but Faster", arXiv:2210.09461. It was made for attention, where the
defaults are its own. A Mamba has no keys to compare, no attention to correct by the tokens' sizes, no MLP to reduce in
front of, and minds the order of the tokens.
"""

from dataclasses import dataclass
from typing import Literal

from mtrkit.methods.base import Widths, register_method
from mtrkit.methods.bipartite import append_odd_even, merge_odd_even
from mtrkit.methods.links import LinkConfig
from mtrkit.methods.signals import read_signal, width_of
from mtrkit.schedule import Place, bipartite_cost
from mtrkit.types import BlockState, Decision

ON_ATTENTION = {
    "metric": "keys",
    "order": "leave",
    "grouping": "sequence",
    "place": "before_mlp",
    "proportional_attention": True,
}
"""The paper's choices, which a Mamba cannot follow or would suffer from."""


@dataclass(frozen=True)
class ToMeConfig(LinkConfig):
    """Options of the ``"tome"`` method, with defaults for Mamba; on a ViT those in :data:`ON_ATTENTION` differ.

    Attributes:
        metric: Tensor that similarity is measured on. The paper's keys, the default on a ViT, exist in attention
            blocks only; for Mamba it is open, and X what R-MeeTo takes.
        similarity: Measure of similarity; cosine is the paper's.
        order: Survivors in sequence order, or left as matching leaves them: the remaining sources by falling
            similarity, then the targets. The paper leaves them, which attention notices only at the next reduction, as
            it changes which tokens are every second one; a scan notices it at once.
        grouping: Sources are every second patch, the first one included (``"odd_even"``), or every second token of
            the sequence, special tokens counted in front (``"sequence"``). The latter is the released code's: with
            one class token, the second patch is the first source, and ``order="leave"`` leaves the sources in
            sequence order, so that the class token stays in front. Special tokens are neither sources nor targets
            (the code has none but a class and a distillation token).
        place: Reduce after the block, or between its attention and its MLP, as the paper does. The MLP then sees the
            tokens that are left, and the last block can reduce too.
        proportional_attention: Add the logarithm of a token's size to its attention logits in every later block, so
            that it weighs as much as the patches that it stands for.
        importance_weight: See :class:`~mtrkit.methods.links.LinkConfig`, as for ``indicator`` and
            ``channels``.
    """

    order: Literal["restore", "leave"] = "restore"
    grouping: Literal["odd_even", "sequence"] = "odd_even"
    place: Place = "after_block"
    proportional_attention: bool = False

    @property
    def fits_chain(self) -> bool:
        """With the defaults for Mamba, beside those of the links."""
        return super().fits_chain and (self.order, self.grouping) == ("restore", "odd_even")

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """As R-MeeTo counts it: normalising, matching half of the tokens with the others, merging."""
        cost = bipartite_cost(width_of(self.metric, widths), widths.dim)
        return cost(num_tokens, num_kept) + self.weighing_flops(num_tokens, widths)


@register_method(
    "tome",
    config=ToMeConfig,
    max_share=0.5,
    source="Bolya et al. 2023, arXiv:2210.09461",
    on_attention=ON_ATTENTION,
    append=append_odd_even,
)
def tome(state: BlockState, num_kept: int, config: ToMeConfig) -> Decision:
    """Merge the r most similar pairs of an even and an odd token, each weighted by the patches it stands for."""
    metric, whole = read_signal(state, config.metric), config.grouping == "sequence"
    to = merge_odd_even(state, num_kept, metric, config, config.order, whole)
    return Decision(to.weighted(state.size))
