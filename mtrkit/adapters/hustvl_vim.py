"""The Vim of the hustvl/Vim repository, as its users have it.

Source: Zhu et al., "Vision Mamba", arXiv:2401.09417.
"""

from typing import Any

from mtrkit.adapters.base import SpecialAt, missing_name, register_adapter
from mtrkit.adapters.stack import IsotropicMamba, both_ends, drops_a_direction, front, last, middle, nowhere
from mtrkit.adapters.unsupported import BETWEEN_BLOCKS

_RANDOM_ORDER = ("if_random_cls_token_position", "if_random_token_rank")


@register_adapter
class HustvlVimAdapter(IsotropicMamba):
    """The ``VisionMamba`` of hustvl/Vim, 2024-02 to its latest revision."""

    name = "hustvl_vim"
    summary = "VisionMamba of the hustvl/Vim repository"

    def mismatch(self, model: Any) -> str | None:
        """Vim's own switches, beside the layout."""
        missing = missing_name(model, ("if_cls_token", "final_pool_type", "if_rope"))
        if missing:
            return f"has no `{missing}`"
        return super().mismatch(model)

    def refusal(self, model: Any) -> str | None:
        """Options of the constructor that a shorter sequence would make wrong."""
        if model.if_rope:
            return (
                "if_rope=True rotates the tokens before every block with a table that has one row per patch; "
                "use a checkpoint with absolute positions (the midclstok releases)"
            )
        if getattr(model, "if_bidirectional", False):
            return "if_bidirectional=True runs the blocks in pairs on flipped sequences"
        if getattr(model, "flip_img_sequences_ratio", -1.0) > 0:
            return "flip_img_sequences_ratio reverses sequences at random; set it to -1"
        if hasattr(model, "out_indices"):
            return BETWEEN_BLOCKS
        kinds = {getattr(block.mixer, "bimamba_type", "v2") for block in model.layers}
        if kinds != {"v2"}:
            return f"bimamba_type is {', '.join(sorted(map(str, kinds)))}; only the published v2 is supported"
        return drops_a_direction(model)

    def halves(self, mixer: Any) -> bool:
        """``if_divide_out``, spelt ``if_devide_out`` until July 2024."""
        return bool(getattr(mixer, "if_divide_out", getattr(mixer, "if_devide_out", False)))

    def num_class_tokens(self, model: Any) -> int:
        """None, one, or one at either end."""
        if not model.if_cls_token:
            return 0
        return 2 if getattr(model, "use_double_cls_token", False) else 1

    def special_at(self, model: Any) -> SpecialAt:
        """Middle, front or both ends, as the constructor's switches say; else the last, if that is read."""
        if not model.if_cls_token:
            return last if model.final_pool_type == "none" else nowhere
        if getattr(model, "use_double_cls_token", False):
            return both_ends
        return middle if getattr(model, "use_middle_cls_token", False) else front

    entries = ("forward_features",)

    def refusal_of_call(self, entry: str, *args: Any, **kwargs: Any) -> str | None:
        """Arguments of ``forward_features`` that move the class token from call to call."""
        named = dict(zip(("inference_params", *_RANDOM_ORDER), args, strict=False)) | kwargs
        given = [name for name in _RANDOM_ORDER if named.get(name)]
        if given:
            return f"{', '.join(given)} moves the class token, and a reduced model has to know where it stands"
        return None
