"""What the families of language Mamba have in common: a causal stack over token ids, in one scan direction.

A reduced language model answers for a text as a whole. The last token, where the next one is predicted, is protected
and sees every token before it, so its answer is as honest as the dense model's. The answers at all other places are
restored from the tokens that are left, and are **not causal**: a merged token holds later tokens as well as earlier
ones, its features go to every place it was merged from, and what stands between these has read them. An earlier
place then knows the token that it is asked to predict, so a perplexity or a log-likelihood summed over several
places is too good to be true. Where tokens are only dropped, as by ``method="random"``, ``"hsa"`` and ``"evit"``,
``"mtr"`` with ``operation="prune"`` and ``"utr"`` with ``hidden="prune", residual="prune"``, no features travel
backwards; a dropped place answers with its features of the block after which it was dropped. Which tokens are
dropped is still chosen by looking at the whole text, but in ``"random"``.

Texts may have any length; one that is too short for the ratio asked for loses what it can, a single token nothing.

Source of the setting: Zhan et al., "Rethinking Token Reduction for State Space Models", arXiv:2410.14725.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt
from mtrkit.adapters.sizes import macs
from mtrkit.adapters.stack import MIXER, last, mismatch_of_layers, stack_sizes
from mtrkit.scan import Signals, mixer_forward, mixer_parts
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import MixerCall

TRAINED_LENGTH = 2048  # tokens of the texts that the published Mamba models were trained on (arXiv:2312.00752)
WHY_NO_GENERATION = (
    "would go on from the states of a reduced text, with every token after it at another place than the model knows, "
    "and one token at a time cannot be reduced"
)


class LanguageMamba(Adapter):
    """A stack of one-direction Mamba blocks between an embedding and a norm, perhaps with a language head around it."""

    directions = 1
    keeps_time = True
    any_length = True
    parts_known = frozenset({*MIXER, "act"})  # of a mixer; another one would be left out

    def mismatch(self, model: Any) -> str | None:
        missing = super().mismatch(model) or mismatch_of_layers(model, ("mixer", "norm"))
        if missing:
            return missing
        for index, block in enumerate(model.layers):
            unknown = _unknown_part(block.mixer, self.parts_known)
            if unknown:
                return f"`layers.{index}` has a mixer with `{unknown}`, which plain Mamba has not"
        return None

    def refusal(self, model: Any) -> str | None:
        for block in model.layers:
            if getattr(block.mixer, "activation", "silu") not in ("silu", "swish"):
                return f"its mixers' activation is {block.mixer.activation!r}, not SiLU"
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.layers)

    def mixer(self, block: Any) -> nn.Module:
        return block.mixer

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        return mixer_forward(hidden, mixer_parts(mixer, ("",)), call.reads, call.gaps, call.runs)

    def special_at(self, model: Any) -> SpecialAt:
        del model
        return last

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        return MambaShape(
            **stack_sizes(model),
            directions=1,
            tokens=input_size[0],
            special=1,
            patches=input_size[0],
            patch_macs=0,
            head_macs=0,
        )

    def shape_within(self, outer: nn.Module, shape: ModelShape) -> ModelShape:
        """A language head answers at every token of the restored sequence."""
        heads = (getattr(module, "lm_head", None) for module in outer.modules())
        head = next((head for head in heads if head is not None), None)
        return replace(shape, head_token_macs=0 if head is None else macs(head))

    def input_size(self, model: Any) -> tuple[int, ...]:
        del model
        return (TRAINED_LENGTH,)

    def mismatch_of_size(self, model: nn.Module, input_size: tuple[int, ...]) -> str | None:
        del model
        if len(input_size) == 1 and type(input_size[0]) is int and input_size[0] > 1:
            return None
        return "takes token ids: give (length,), the number of tokens of a text, at least 2"


def _unknown_part(mixer: nn.Module, known: frozenset[str]) -> str | None:
    """What a mixer has that the adapter's code would leave out, such as a second direction."""
    parts = (mixer.named_children(), mixer.named_parameters(recurse=False), mixer.named_buffers(recurse=False))
    # Some versions of Falcon Mamba have no other trace of their norms on Δ, B and C.
    norms = ("rms_eps",) if hasattr(mixer, "rms_eps") else ()
    return next((name for name in (*(n for part in parts for n, _ in part), *norms) if name not in known), None)
