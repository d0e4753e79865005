"""mtrkit's own models: Vim, VideoMamba for images and clips, and Mamba-Reg."""

from functools import partial
from typing import Any

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.sizes import macs
from mtrkit.adapters.stack import IsotropicMamba, front, middle, nowhere, spread


@register_adapter
class VimAdapter(IsotropicMamba):
    """mtrkit's own ``VisionMamba``."""

    name = "vim"
    summary = "mtrkit's own Vim models"

    def mismatch(self, model: Any) -> str | None:
        """Our names for the class token and the pooling, beside the layout."""
        missing = missing_name(model, ("class_token", "num_class_tokens", "num_registers", "global_pool"))
        return f"has no `{missing}`" if missing else super().mismatch(model)

    side_channel = "call"
    reads_itself = True
    own_code_reads = ()
    takes_stream = True

    def input_size(self, model: Any) -> tuple[int, ...]:
        """Of images (C, H, W) or clips (C, T, H, W)."""
        return model.patch_embed.input_size

    def halves(self, mixer: Any) -> bool:
        """As the constructor says."""
        return bool(mixer.halve)

    def num_class_tokens(self, model: Any) -> int:
        """One, unless there is none; or the registers."""
        return model.num_class_tokens + model.num_registers

    def head_macs(self, model: Any) -> int:
        """The head, and what narrows registers before it."""
        neck = macs(model.neck) * model.num_registers if hasattr(model, "neck") else 0
        return neck + super().head_macs(model)

    def special_at(self, model: Any) -> SpecialAt:
        """Where the constructor's ``class_token`` says, or registers evenly spread."""
        if model.num_registers:
            return partial(spread, model.num_registers)
        return {"middle": middle, "front": front, "none": nowhere}[model.class_token]
