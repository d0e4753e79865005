"""Mamba language models of the ``mamba_ssm`` package: ``MixerModel``, or ``MambaLMHeadModel`` around it.

Read :mod:`mtrkit.adapters.language` first on which of a reduced model's answers can be trusted. This family takes no
mask: give texts of one length, because padding looks like words here.
"""

from typing import Any

from mtrkit.adapters.base import register_adapter
from mtrkit.adapters.language import WHY_NO_GENERATION, LanguageMamba


@register_adapter
class MambaLMAdapter(LanguageMamba):
    """``MixerModel``, whose blocks pass on the mixer's output and the running sum apart."""

    name = "mamba_lm"
    summary = "MixerModel and MambaLMHeadModel of the mamba_ssm package, with Mamba-1 mixers"
    marks = ("layers", "norm_f", "embedding")
    own_code_reads = ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
    entries = ("forward",)

    def refusal(self, model: Any) -> str | None:
        if any(getattr(block, "mlp", None) is not None for block in model.layers):
            return "its blocks have an MLP behind the mixer (d_intermediate > 0)"
        return super().refusal(model)

    def refusal_of_call(self, entry: str, inference_params: Any = None, *args: Any, **kwargs: Any) -> str | None:
        """Generation, and whatever is meant for single tokens on their way through the mixers."""
        del entry
        if inference_params is not None:
            return f"generation (inference_params, as generate() sets it) {WHY_NO_GENERATION}"
        given = [name for name, value in kwargs.items() if value is not None and name != "input_ids"]
        if given or args:
            return f"{', '.join(given) or 'an argument'} has an entry per token, and a reduced model has fewer tokens"
        return None
