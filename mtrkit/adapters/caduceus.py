"""Caduceus on DNA: a stack whose mixers hold two one-direction mixers that share their outer projections.

In Caduceus-PS the channels of a token are two strands, and the mixer runs on each: on the second one, turned around in
tokens and channels, as on the first.

Every place is predicted from both sides, so no answer is causal to begin with. Which places were merged is seen in the
answers: a place answers with the features of the token that it was merged into.

Source: Schiff et al., "Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling", arXiv:2403.03234.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.language import LanguageMamba
from mtrkit.adapters.stack import MIXER, mixer_sizes, nowhere
from mtrkit.scan import MixerLayers, Signals, direction_layers, mixer_forward
from mtrkit.schedule import MambaShape, ModelShape
from mtrkit.schedule.cost import Directions, Widths
from mtrkit.types import Gaps, MixerCall, Runs

_WAYS = ("mamba_fwd", "mamba_rev")
_SHARED = ("in_proj", "out_proj")


@dataclass(frozen=True, kw_only=True)
class StrandShape(MambaShape):
    """Blocks that run on two strands of ``dim`` channels each."""

    @property
    def widths(self) -> Widths:
        """Tokens have both strands; the signals are the mean of the two."""
        return Widths(2 * self.dim, self.inner, self.state)

    def block_flops(self, num_tokens: int, directions: Directions = "one") -> int:
        """Count one block: each strand is a sequence of its own."""
        return 2 * super().block_flops(num_tokens, directions)


def _inside(mixer: Any) -> Any:
    """The mixer of one strand, which Caduceus-PS has inside of another module."""
    return getattr(mixer, "submodule", mixer)


@register_adapter
class CaduceusAdapter(LanguageMamba):
    """``CaduceusMixerModel`` in its published forms, Caduceus-Ph and Caduceus-PS."""

    name = "caduceus"
    summary = "Caduceus-Ph and Caduceus-PS of the kuleshov-group/caduceus repository"
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
            inside = _inside(getattr(block, "mixer", None))
            missing = missing_name(inside, _WAYS) or missing_name(inside.mamba_fwd, MIXER)
            if missing:
                return f"the mixer of `layers.{index}` has no `{missing}`"
        return None

    def refusal(self, model: Any) -> str | None:
        for index, block in enumerate(model.layers):
            mixer, place = _inside(block.mixer), f"`layers.{index}.mixer`"
            if mixer.mamba_rev is None or mixer.bidirectional_strategy != "add":
                return f"{place} does not add two directions, as the published models do"
            shared = [getattr(way, name).weight for name in _SHARED for way in (mixer.mamba_fwd, mixer.mamba_rev)]
            if shared[0] is not shared[1] or shared[2] is not shared[3]:
                return f"{place} has projections of its own for each direction (bidirectional_weight_tie=False)"
        return None

    def has_layers(self, mixer: Any) -> bool:
        return all(super(CaduceusAdapter, self).has_layers(getattr(_inside(mixer), way, None)) for way in _WAYS)

    def check_layers(self, mixer: Any, weights: bool = True) -> None:
        for way in _WAYS:
            super().check_layers(getattr(_inside(mixer), way), weights)

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        inside, reads = _inside(mixer), call.reads
        first = inside.mamba_fwd
        parts = MixerLayers(first.in_proj, first.out_proj, tuple(direction_layers(getattr(inside, w)) for w in _WAYS))
        if inside is mixer:
            return mixer_forward(hidden, parts, reads, call.gaps, call.runs)
        strand, other = hidden.chunk(2, dim=2)
        out, signals = mixer_forward(strand, parts, reads, call.gaps, call.runs)
        gaps = None if call.gaps is None else Gaps(call.gaps.backward.flip(1), call.gaps.forward.flip(1))
        runs = None if call.runs is None else Runs(call.runs.lengths.flip(1), call.runs.positions)
        turned, found = mixer_forward(other.flip(1, 2), parts, reads, gaps, runs)
        mean = (None if a is None or b is None else (a + b.flip(1)) / 2 for a, b in zip(signals, found, strict=True))
        return torch.cat([out, turned.flip(1, 2)], dim=2), Signals(*mean)

    def special_at(self, model: Any) -> SpecialAt:
        del model
        return nowhere

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        mixer = model.layers[0].mixer
        inside = _inside(mixer)
        return (MambaShape if inside is mixer else StrandShape)(
            depth=len(model.layers),
            **mixer_sizes(inside.mamba_fwd),
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
