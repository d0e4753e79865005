"""mtrkit's own models: Vim, VideoMamba for images and clips, and Mamba-Reg."""

from typing import Any

from mtrkit.adapters.base import SpecialAt, register_adapter
from mtrkit.adapters.sizes import macs
from mtrkit.adapters.stack import STACK, IsotropicMamba


@register_adapter
class VimAdapter(IsotropicMamba):
    """mtrkit's own ``VisionMamba``."""

    name = "vim"
    summary = "mtrkit's own Vim models"
    marks = (*STACK, "class_token", "num_class_tokens", "num_registers", "global_pool")
    call_argument = "call"
    own_code_reads = ()
    reads_itself = True
    restores_itself = True

    def input_size(self, model: Any) -> tuple[int, ...]:
        return model.patch_embed.input_size

    def averages_directions(self, mixer: Any) -> bool:
        return bool(mixer.halve)

    def num_class_tokens(self, model: Any) -> int:
        return model.num_class_tokens + model.num_registers

    def head_macs(self, model: Any) -> int:
        neck = macs(model.neck) * model.num_registers if hasattr(model, "neck") else 0
        return neck + super().head_macs(model)

    def special_at(self, model: Any) -> SpecialAt:
        return model.special_positions  # a bound method, which pickles and copies with the model
