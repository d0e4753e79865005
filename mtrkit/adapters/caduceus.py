"""Caduceus on DNA: a stack whose mixers hold two one-direction mixers that share their outer projections.

Every place is predicted from both sides, so no answer is causal to begin with. Which places were merged is seen in the
answers: a place answers with the features of the token that it was merged into.

Source: Schiff et al., "Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling", arXiv:2403.03234.
"""

from typing import Any

from torch import Tensor, nn

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.language import LanguageMamba
from mtrkit.adapters.stack import MIXER, mixer_sizes, nowhere
from mtrkit.scan import MixerLayers, Signals, direction_layers, mixer_forward
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.types import MixerCall

_WAYS = ("mamba_fwd", "mamba_rev")
_SHARED = ("in_proj", "out_proj")


@register_adapter
class CaduceusAdapter(LanguageMamba):
    """``CaduceusMixerModel`` in its published form, without the two strands of Caduceus-PS."""

    name = "caduceus"
    summary = "Caduceus-Ph of the kuleshov-group/caduceus repository"
    marks = ("layers", "norm_f", "embeddings", "fused_add_norm", "rcps")
    directions = 2
    own_code_reads = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    entries = ("forward",)

    def mismatch(self, model: Any) -> str | None:
        missing = missing_name(model, self.marks)
        if missing:
            return f"has no `{missing}`"
        if not isinstance(model.layers, nn.ModuleList) or not len(model.layers):
            return "`layers` is not a list of blocks"
        for index, block in enumerate(model.layers):
            mixer: Any = getattr(block, "mixer", None)
            inside: Any = getattr(mixer, "submodule", mixer)
            missing = missing_name(inside, _WAYS) or missing_name(inside.mamba_fwd, MIXER)
            if missing:
                return f"the mixer of `layers.{index}` has no `{missing}`"
        return None

    def refusal(self, model: Any) -> str | None:
        for index, block in enumerate(model.layers):
            mixer, place = block.mixer, f"`layers.{index}.mixer`"
            if hasattr(mixer, "submodule"):
                return (
                    f"{place} splits its channels into two strands (rcps=True, Caduceus-PS), the second of which "
                    "runs through the tokens backwards; Caduceus-Ph is reduced"
                )
            if mixer.mamba_rev is None or mixer.bidirectional_strategy != "add":
                return f"{place} does not add two directions, as the published models do"
            shared = [getattr(way, name).weight for name in _SHARED for way in (mixer.mamba_fwd, mixer.mamba_rev)]
            if shared[0] is not shared[1] or shared[2] is not shared[3]:
                return f"{place} has projections of its own for each direction (bidirectional_weight_tie=False)"
        return None

    def check_layers(self, mixer: Any, weights: bool = True) -> None:
        for way in _WAYS:
            super().check_layers(getattr(mixer, way), weights)

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        first = mixer.mamba_fwd
        parts = MixerLayers(first.in_proj, first.out_proj, tuple(direction_layers(getattr(mixer, w)) for w in _WAYS))
        return mixer_forward(hidden, parts, call.reads, call.gaps, call.runs)

    def special_at(self, model: Any) -> SpecialAt:
        del model
        return nowhere

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        mixer = model.layers[0].mixer.mamba_fwd
        return MambaShape(
            depth=len(model.layers),
            **mixer_sizes(mixer),
            directions=2,
            tokens=input_size[0],
            special=0,
            patches=input_size[0],
            patch_macs=0,
            head_macs=0,
        )

    def refusal_of_call(
        self, entry: str, inputs_embeds: Any = None, output_hidden_states: Any = None, *args: Any, **kwargs: Any
    ) -> str | None:
        del entry, inputs_embeds, args, kwargs
        if not output_hidden_states:
            return None
        return "output_hidden_states reads between the blocks, where a reduced model has fewer tokens"
