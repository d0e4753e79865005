"""Mamba language models of Hugging Face ``transformers``, the bare ``MambaModel`` or with a head around it.

Read :mod:`mtrkit.adapters.language` first on which of a reduced model's answers can be trusted. A plain call works as
before, of any length and with padding on either side, and returns every hidden state at its full length. It returns
no ``cache_params``, also where ``config.use_cache`` says so by default.
"""

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.adapters.base import register_adapter
from mtrkit.adapters.language import WHY_NO_GENERATION, LanguageMamba
from mtrkit.adapters.padding import Group, group_by_length, spread
from mtrkit.dynamo import constant_result
from mtrkit.ops import restore_sum
from mtrkit.scan import DirectionLayers, MixerLayers, Signals, direction_layers, mixer_forward
from mtrkit.types import MixerCall, ReducedStream

_NORMS = ("dt_layernorm", "b_layernorm", "c_layernorm")  # which have no weights


@register_adapter
class HFMambaAdapter(LanguageMamba):
    """``MambaModel``: its blocks add the mixer's output themselves and pass on one tensor."""

    name = "hf_mamba"
    summary = "MambaModel and MambaForCausalLM of Hugging Face transformers"
    marks = ("layers", "norm_f", "embeddings")
    single_stream = True
    package = "transformers."
    call_argument = None
    own_code_reads = ("conv1d", "dt_proj")
    splits = True
    entries = ("forward",)

    def read_by_own_code(self, mixer: nn.Module) -> tuple[str, ...]:
        """In training, a fused kernel takes the weights behind the scan's input too."""
        fused = mixer.training and fused_kernels_installed()
        return (*self.own_code_reads, "x_proj", "out_proj") if fused else self.own_code_reads

    def split_block(self, block: Any, tokens: Tensor, call: MixerCall) -> tuple[Tensor, Tensor]:
        """Norm and mixer, and the tokens that the block adds to, in float32 if it wants so."""
        hidden = block.mixer(block.norm(tokens.to(block.norm.weight.dtype)), call)
        return hidden, tokens.float() if block.residual_in_fp32 else tokens

    def refusal_of_call(
        self,
        entry: str,
        inputs_embeds: Any = None,
        cache_params: Any = None,
        use_cache: Any = None,
        *args: Any,
        cache: Any = None,  # its name in newer versions of transformers
        **kwargs: Any,
    ) -> str | None:
        """Generation from a cache, in either direction."""
        del entry, inputs_embeds, args, kwargs
        if cache_params is None and cache is None and not use_cache:
            return None
        return f"cached generation (cache_params, or use_cache=True as generate() sets it) {WHY_NO_GENERATION}"

    def run_call(
        self,
        model: Any,
        call: Callable[..., Any],
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_params: None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Without a cache, which is the model's default; padding taken off; hidden states at their full length."""
        del cache_params, use_cache
        name, inputs = ("inputs_embeds", inputs_embeds) if input_ids is None else ("input_ids", input_ids)
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            return call(input_ids, inputs_embeds)  # which says what is wrong
        mask = inputs.new_ones(inputs.shape[:2]) if attention_mask is None else attention_mask
        groups = [] if attention_mask is None else group_by_length(mask, inputs)
        options = kwargs | {"use_cache": False, "output_hidden_states": output_hidden_states, "return_dict": True}
        parts = [inputs[group] for group in groups] or [inputs]
        answer = _joined([call(**{name: part}, **options) for part in parts], groups, mask)
        as_dict = model.config.return_dict if return_dict is None else return_dict
        return answer if as_dict else answer.to_tuple()


@register_adapter
class FalconMambaAdapter(HFMambaAdapter):
    """``FalconMambaModel``: the same, with norms of Δ, B and C in front of the scan.

    Source: Zuo et al., "Falcon Mamba", arXiv:2410.05355.
    """

    name = "falcon_mamba"
    summary = "FalconMambaModel and FalconMambaForCausalLM of Hugging Face transformers"
    parts_known = HFMambaAdapter.parts_known | {"rms_eps", "b_c_rms", "dt_rms"} | set(_NORMS)

    def mismatch(self, model: Any) -> str | None:
        wrong = super().mismatch(model)
        if wrong:
            return wrong
        missing = next((i for i, block in enumerate(model.layers) if not hasattr(block.mixer, "rms_eps")), None)
        return None if missing is None else f"`layers.{missing}.mixer` has no `rms_eps`"

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        conv, _, dt_proj, A_log, D = direction_layers(mixer)
        projection = partial(_project_normed, mixer.x_proj, mixer.rms_eps, A_log.shape[1])
        way = DirectionLayers(conv, projection, dt_proj, A_log, D)
        parts = MixerLayers(mixer.in_proj, mixer.out_proj, (way,))
        return mixer_forward(hidden, parts, call.reads, call.gaps, call.runs)


def _project_normed(x_proj: nn.Module, eps: float, state: int, u: Tensor) -> Tensor:
    """Δ before its projection, B and C (B, L, R + 2N), each divided by its root mean square."""
    projected = x_proj(u)
    parts = projected.float().split([projected.shape[-1] - 2 * state, state, state], dim=-1)
    normed = [F.rms_norm(part, part.shape[-1:], eps=eps) for part in parts]
    return torch.cat(normed, dim=-1).to(projected.dtype)


@constant_result  # what is installed does not change, and a compiler cannot look for it
@lru_cache(maxsize=1)
def fused_kernels_installed() -> bool:
    """Whether transformers may find the fused mixer of mamba_ssm, in the package itself or in the hub's kernels."""
    return any(name in sys.modules or find_spec(name) is not None for name in ("mamba_ssm", "kernels"))


def _joined(answers: list[Any], groups: list[Group], mask: Tensor) -> Any:
    """One ``MambaOutput`` from those of all parts."""
    answer = answers[0]
    answer.last_hidden_state = spread([part.last_hidden_state for part in answers], groups, mask)
    if answer.hidden_states is not None:
        layers = zip(*(part.hidden_states for part in answers), strict=True)
        answer.hidden_states = tuple(spread([_full(tokens) for tokens in layer], groups, mask) for layer in layers)
    return answer


def _full(tokens: Any) -> Tensor:
    """Of what a block passes on, the tokens at the length the pass began with."""
    return restore_sum(tokens) if isinstance(tokens, ReducedStream) else tokens
