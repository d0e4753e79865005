"""VideoMamba of the OpenGVLab/VideoMamba repository, for images and for clips, as its users have it.

Source: Li et al., "VideoMamba", arXiv:2403.06977.
"""

from typing import Any

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.sizes import unwrapped
from mtrkit.adapters.stack import IsotropicMamba, drops_a_direction, front


@register_adapter
class VideoMambaAdapter(IsotropicMamba):
    """``VisionMamba`` of ``image_sm`` and ``video_sm``; the class token is read at index 0."""

    name = "videomamba"
    summary = "VisionMamba of the OpenGVLab/VideoMamba repository, images and clips"

    def mismatch(self, model: Any) -> str | None:
        """A class token, and mixers with this repository's switch, beside the layout."""
        missing = missing_name(model, ("cls_token", "pos_embed"))
        if missing:
            return f"has no `{missing}`"
        return super().mismatch(model) or _without_switch(model)

    def refusal(self, model: Any) -> str | None:
        """One-direction mixers."""
        if not all(block.mixer.bimamba for block in model.layers):
            return "bimamba=False runs one direction; the published models run two"
        return drops_a_direction(model)

    def halves(self, mixer: Any) -> bool:
        """Never: the plain sum."""
        del mixer
        return False

    def num_class_tokens(self, model: Any) -> int:
        """One."""
        del model
        return 1

    def special_at(self, model: Any) -> SpecialAt:
        """Always in front."""
        del model
        return front

    def input_size(self, model: Any) -> tuple[int, ...]:
        """(C, H, W), or (C, T, H, W) where positions in time say how many frames there are."""
        channels, *size = super().input_size(model)
        times = getattr(model, "temporal_pos_embedding", None)
        if times is None:
            return (channels, *size)
        return (channels, times.shape[1] * unwrapped(model.patch_embed.proj).kernel_size[0], *size)


def _without_switch(model: Any) -> str | None:
    """What tells VideoMamba's mixers from those of Vim and Mamba-Reg, which are copies of one another."""
    missing = next((i for i, block in enumerate(model.layers) if not hasattr(block.mixer, "bimamba")), None)
    return None if missing is None else f"`layers.{missing}.mixer` has no `bimamba`"
