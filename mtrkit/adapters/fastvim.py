"""The Vim of the FastVim repository, whose mixers have a LayerNorm behind their scans.

Source: Kapse et al., "FastVim", arXiv:2502.00594. FastVim itself pools tokens inside of its mixers and is not reduced.
"""

from functools import partial
from typing import Any

from torch import Tensor

from mtrkit.adapters.base import SpecialAt, register_adapter
from mtrkit.adapters.stack import STACK, IsotropicMamba, front, last, middle, nowhere
from mtrkit.adapters.unsupported import known_family
from mtrkit.scan import MixerLayers, Parts, direction_layers

_NORM = "use_norm_after_ssm"


@register_adapter
class FastVimVimAdapter(IsotropicMamba):
    """``VisionMamba`` of ``models/vim.py`` in insitro/FastVim, with that norm or without."""

    name = "fastvim_vim"
    summary = "Vim of the insitro/FastVim repository, with a LayerNorm behind its scans"
    marks = (*STACK, "if_cls_token", "final_pool_type", "token_size", "num_patches")
    entries = ("forward_features",)
    gates_scans = False

    def mismatch(self, model: Any) -> str | None:
        wrong = super().mismatch(model)
        if wrong:
            return wrong
        missing = next((i for i, block in enumerate(model.layers) if not hasattr(block.mixer, _NORM)), None)
        if missing is not None:
            return f"`layers.{missing}.mixer` has no `{_NORM}`"
        fork = known_family(model)
        return f"is of the family {fork.name}" if fork else None

    def parts(self, mixer: Any) -> Parts:
        if not mixer.use_norm_after_ssm:
            return super().parts(mixer)
        ways = (direction_layers(mixer), direction_layers(mixer, "_b"))
        return MixerLayers(mixer.in_proj, mixer.out_proj, ways, norm=partial(_norm_of_mean, mixer.layernorm))

    def averages_directions(self, mixer: Any) -> bool:
        return True

    def num_class_tokens(self, model: Any) -> int:
        return int(model.if_cls_token)

    def special_at(self, model: Any) -> SpecialAt:
        if not model.if_cls_token:
            return last if model.final_pool_type == "none" else nowhere
        return middle if model.use_middle_cls_token else front

    def refusal_of_call(
        self, entry: str, inference_params: Any = None, out_indices: Any = None, *args: Any, **kwargs: Any
    ) -> str | None:
        del entry, inference_params, args, kwargs
        if out_indices is None:
            return None
        return "out_indices reads between the blocks, where a reduced model has fewer tokens"


def _norm_of_mean(norm: Any, total: Tensor) -> Tensor:
    """The norm of the directions' mean, where ``total`` is their sum; it has an epsilon, so the factor counts."""
    return norm(total * 0.5)
