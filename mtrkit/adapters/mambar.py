"""Mamba-Reg (Mamba®) of the wangf3014/Mamba-Reg repository: registers spread through the sequence.

Source: Wang et al., "Mamba-R: Vision Mamba ALSO Needs Registers", arXiv:2405.14858.
"""

from functools import partial
from typing import Any

from torch import nn

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.sizes import macs
from mtrkit.adapters.stack import IsotropicMamba, drops_a_direction, spread


@register_adapter
class MambaRegAdapter(IsotropicMamba):
    """``VisionMamba`` with ``num_cls_tokens`` registers, all of them read by the head at ``cls_positions``."""

    name = "mambar"
    summary = "VisionMamba of the wangf3014/Mamba-Reg repository"

    def mismatch(self, model: Any) -> str | None:
        """The registers' attributes, beside the layout."""
        missing = missing_name(model, ("num_cls_tokens", "cls_positions", "token_idx", "cls_reduce"))
        return f"has no `{missing}`" if missing else super().mismatch(model)

    def refusal(self, model: Any) -> str | None:
        return drops_a_direction(model)

    def halves(self, mixer: Any) -> bool:
        """Always."""
        del mixer
        return True

    def num_class_tokens(self, model: Any) -> int:
        """The registers."""
        return model.num_cls_tokens

    def special_at(self, model: Any) -> SpecialAt:
        """Evenly spread, whatever the input size."""
        return partial(spread, model.num_cls_tokens)

    def head_macs(self, model: Any) -> int:
        """The head reads every register, through a narrow linear layer where there is one."""
        neck = getattr(model, "neck", nn.Identity())
        narrowed = macs(neck) * model.num_cls_tokens
        return narrowed + super().head_macs(model)
