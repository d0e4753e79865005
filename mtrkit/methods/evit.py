"""EViT: keep the tokens most similar to the class token, drop the others or fuse them into one.

Source: Liang et al., "Not All Patches are What You Need", arXiv:2202.07800. Its importance is the class token's
attention; the version for Mamba, by similarity to the class token, is MTR's (arXiv:2507.14042).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mtrkit.methods.base import MethodConfig, Widths, register_method
from mtrkit.methods.signals import read_by, read_signal, scoring_flops
from mtrkit.ops import channel_score, class_score, exact_slots, hold_special, rank_tokens, token_map
from mtrkit.types import BlockState, Decision


@dataclass(frozen=True)
class EViTConfig(MethodConfig):
    """Options of the ``"evit"`` method.

    Attributes:
        indicator: Cosine similarity to the class token (the mean of the special tokens, or of all tokens where
            there is none), or in attention blocks the class token's attention, as in the original.
        metric: Tensor that similarity is measured on: the residual stream, or the mixer output X (open).
        fuse: Merge the dropped tokens into one, weighted by their importance, at the place of the best of them
            (MTR does not say; the original offers both, and puts the fused token last).
        order: Kept tokens in sequence order (MTR), or by falling importance as the original leaves them.
    """

    indicator: Literal["cls", "attention"] = "cls"
    metric: Literal["features", "X"] = "features"
    fuse: bool = False
    order: Literal["restore", "leave"] = "restore"

    @property
    def reads(self) -> frozenset[str]:
        """The signal behind the indicator."""
        return read_by(self.indicator)

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Comparing with the class token, and fusing."""
        fused = (num_tokens - num_kept) * widths.dim if self.fuse else 0
        return scoring_flops(self.indicator, num_tokens, widths) + fused


@register_method("evit", config=EViTConfig, max_share=1.0, source="Liang et al. 2022, arXiv:2202.07800")
def evit(state: BlockState, num_kept: int, config: EViTConfig) -> Decision:
    """Keep the tokens most similar to the class token."""
    if config.indicator == "cls":
        score = class_score(read_signal(state, config.metric), state.special)
    else:
        score = channel_score(read_signal(state, config.indicator))
    ranked = rank_tokens(score, state.special)
    best, dropped = ranked.tensor_split([num_kept - state.special.shape[1]], dim=1)
    kept = torch.cat([state.special, best], dim=1)
    if config.order == "leave":
        kept = hold_special(best, state.special, exact_slots(torch.sort(kept, dim=1).values, state.special))
    if not config.fuse:
        return Decision(token_map(state.num_tokens, kept, ordered=config.order == "restore"), score)
    # The last of the kept is the best of those that are fused; one unlike the class token adds nothing.
    to = token_map(state.num_tokens, kept, dropped, best[:, -1:].expand_as(dropped), ordered=config.order == "restore")
    return Decision(to.weighted(score.clamp(min=1e-6)[..., None]), score)
