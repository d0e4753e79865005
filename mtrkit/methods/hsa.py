"""HSA: drop the tokens whose scan output, clipped at zero, is smallest.

Source: Zhan et al., "Exploring Token Pruning in Vision State Space Models", NeurIPS 2024, arXiv:2409.18962. The
released code scores by the backward direction alone, in reversed order, without clipping, and masks the class token
in the first image only; this is the paper's text. Its alignment of the scan to the gaps is not in the released code.
"""

from dataclasses import dataclass
from typing import Literal

from mtrkit.methods.base import Alignment, MethodConfig, Widths, register_method
from mtrkit.methods.signals import importance, scored_by, scoring_flops
from mtrkit.ops import ChannelReduction, in_sequence, middle_slots, move_special, rank_tokens, token_map, without
from mtrkit.types import BlockState, Decision


@dataclass(frozen=True)
class HSAConfig(MethodConfig):
    """Options of the ``"hsa"`` method.

    The paper keeps an even number of patches: 157, 125 and 101 tokens of 197. Give such numbers as ``tokens``.

    Attributes:
        indicator: What importance is read from: y, the scan's output before the gate, both directions added (how
            they combine is open).
        channels: The positive parts are the paper's; it sums them, which ranks as the mean does.
        class_position: Where special tokens stand afterwards: after as many tokens as have survived in front
            of them, per image, or in the middle of all that are kept: the released code's approximation, for
            models that have their class token there.
        state: What the scan's state does at the positions of removed tokens in later blocks (open): it is carried
            over them unchanged, as if they had never been, or it decays as it would if they were there with no
            input.
        removed_delta: The time step Δ by which it decays there, which was never computed (open): that of a token
            without content, softplus of the bias of Δ's projection, or the token's last one, half of the sum over
            the directions.
    """

    indicator: Literal["y", "X"] = "y"
    channels: ChannelReduction = "clipped"
    class_position: Literal["exact", "middle"] = "exact"

    state: Literal["carry", "decay"] = "carry"
    removed_delta: Literal["bias", "last"] = "bias"

    @property
    def reads(self) -> frozenset[str]:
        """The signal behind the indicator, and Δ where that of removed tokens is remembered."""
        remembered = frozenset({"delta"}) if self.alignment == "last" else frozenset()
        return scored_by(self.indicator, self.channels) | remembered

    @property
    def alignment(self) -> Alignment:
        """How the scans of later blocks pass over removed tokens."""
        return "carry" if self.state == "carry" else self.removed_delta

    def flops(self, num_tokens: int, num_kept: int, widths: Widths) -> int:
        """Scoring, one addition per channel."""
        return scoring_flops(self.indicator, num_tokens, widths)


@register_method("hsa", config=HSAConfig, max_share=1.0, source="Zhan et al. 2024, arXiv:2409.18962")
def hsa(state: BlockState, num_kept: int, config: HSAConfig) -> Decision:
    """Drop the r tokens of smallest clipped scan output."""
    score = importance(state, config.indicator, config.channels)
    lowest = rank_tokens(score, state.special)[:, num_kept - state.num_tokens :]
    kept = without(in_sequence(state.hidden), lowest)
    if config.class_position == "middle":
        kept = move_special(kept, state.special, middle_slots(state.special, num_kept))
    return Decision(token_map(state.num_tokens, kept, ordered=False), score)
