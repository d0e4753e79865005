"""``mamba_ssm.models``: the language model of Mamba-1, its stack and its configuration.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), section E.2 for the initial values.
"""

import json
import math
import os
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import OptionError
from mtrkit.standin.block import Block, GatedMLP
from mtrkit.standin.generation import GenerationMixin
from mtrkit.standin.hub import CONFIG, WEIGHTS, load_config_hf, load_state_dict_hf
from mtrkit.standin.mamba import Mamba
from mtrkit.standin.norms import RMSNorm, layer_norm_fn

CausalLMOutput = namedtuple("CausalLMOutput", ["logits"])
Options = dict[str, Any]


@dataclass
class MambaConfig:
    """Sizes of a language model, as in its ``config.json``; see :class:`MixerModel` and :class:`MambaLMHeadModel`."""

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: Options = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: Options = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: Options | None = None,
    attn_layer_idx: Sequence[int] | None = None,
    attn_cfg: Options | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """A block with a Mamba-1 mixer.

    Args:
        d_model: Width of the tokens.
        d_intermediate: Inner width of an MLP behind the mixer. Default: no MLP.
        ssm_cfg: Options of :class:`~mtrkit.standin.mamba.Mamba`.
        attn_layer_idx: Blocks with attention in the mixer's place, which are not supported.
        attn_cfg: Of that attention.
        norm_epsilon: Of the norms.
        rms_norm: Whether they are by the root mean square.
        residual_in_fp32: See :class:`~mtrkit.standin.block.Block`.
        fused_add_norm: See there.
        layer_idx: Number of the block.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        OptionError: Attention, Mamba-2 or Mamba-3 is asked for.
    """
    del attn_cfg
    if layer_idx in (attn_layer_idx or ()):
        raise OptionError(f"block {layer_idx} has attention (attn_layer_idx), for which mtrkit does not stand in")
    options = dict(ssm_cfg or {})
    kind = options.pop("layer", "Mamba1")
    if kind != "Mamba1":
        raise OptionError(f"ssm_cfg has layer={kind!r}; mtrkit stands in for 'Mamba1' alone")
    place: Options = {"device": device, "dtype": dtype}
    mixer = partial(Mamba, layer_idx=layer_idx, **options, **place)
    mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **place)
    norm = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **place)
    block = Block(d_model, mixer, mlp if d_intermediate else nn.Identity, norm, fused_add_norm, residual_in_fp32)
    block.layer_idx = layer_idx
    return block


class MixerModel(nn.Module):
    """Embedding, blocks, norm.

    Args:
        d_model: Width of the tokens.
        n_layer: Number of blocks.
        d_intermediate: See :func:`create_block`, as for what is not said here.
        vocab_size: Number of tokens that are known. Must be given.
        ssm_cfg: See there.
        attn_layer_idx: See there.
        attn_cfg: See there.
        norm_epsilon: See there.
        rms_norm: See there.
        initializer_cfg: Options of :func:`init_weights`.
        fused_add_norm: See there.
        residual_in_fp32: See there.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        OptionError: No ``vocab_size``, or what :func:`create_block` refuses.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int = 0,
        vocab_size: int | None = None,
        ssm_cfg: Options | None = None,
        attn_layer_idx: Sequence[int] | None = None,
        attn_cfg: Options | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: Options | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None:  # before 2.0 it stood in the third place
            raise OptionError("MixerModel was called without vocab_size; give it by name")
        place: Options = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **place)
        sizes = (d_model, d_intermediate, ssm_cfg, attn_layer_idx, attn_cfg, norm_epsilon, rms_norm)
        rest = (residual_in_fp32, fused_add_norm)
        self.layers = nn.ModuleList(create_block(*sizes, *rest, layer_idx=i, **place) for i in range(n_layer))
        self.norm_f = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **place)
        per_layer = 2 if d_intermediate else 1
        options = initializer_cfg or {}
        self.apply(partial(init_weights, n_layer=n_layer, n_residuals_per_layer=per_layer, **options))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """States of a generation that has not begun, by block."""
        layers: Any = self.layers
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype, **kwargs) for i, layer in enumerate(layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any) -> Tensor:
        """Ids (B, L) to features (B, L, D)."""
        norm: Any = self.norm_f
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inference_params=inference_params, **mixer_kwargs)
        if not self.fused_add_norm:
            total = hidden if residual is None else hidden + residual
            return norm(total.to(norm.weight.dtype))
        wide, rms = self.residual_in_fp32, isinstance(norm, RMSNorm)
        options: Options = {"eps": norm.eps, "residual_in_fp32": wide, "is_rms_norm": rms}
        return layer_norm_fn(hidden, norm.weight, norm.bias, residual, **options)  # type: ignore[return-value]


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """The stack under a language head.

    Args:
        config: Its sizes; ``vocab_size`` is rounded up to a multiple of ``pad_vocab_size_multiple``, and the head has
            the embedding's weight with ``tie_embeddings``.
        initializer_cfg: Options of :func:`init_weights`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        OptionError: What :func:`create_block` refuses.
    """

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: Options | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        place: Options = {"device": device, "dtype": dtype}
        multiple = config.pad_vocab_size_multiple
        vocabulary = -(-config.vocab_size // multiple) * multiple
        options = {name: value for name, value in vars(config).items() if name not in _OF_THE_HEAD}
        self.backbone = MixerModel(vocab_size=vocabulary, initializer_cfg=initializer_cfg, **options, **place)
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False, **place)
        self.apply(partial(init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Give the head the embedding's weight if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """See :meth:`MixerModel.allocate_inference_cache`."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Any = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Ids (B, L) to ``.logits`` (B, L, vocabulary), or of the last ``num_last_tokens`` alone."""
        del position_ids  # generation code gives them; Mamba has no positions
        hidden = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        return CausalLMOutput(self.lm_head(hidden[:, -num_last_tokens:] if num_last_tokens > 0 else hidden))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> "MambaLMHeadModel":
        """The model of a folder, or of that name on the Hugging Face hub, with its weights."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write configuration and weights into a folder, which is made if need be."""
        os.makedirs(save_directory, exist_ok=True)
        torch.save(self.state_dict(), os.path.join(save_directory, WEIGHTS))
        with open(os.path.join(save_directory, CONFIG), "w", encoding="utf-8") as file:
            json.dump(asdict(self.config), file, indent=4)


_OF_THE_HEAD = ("vocab_size", "pad_vocab_size_multiple", "tie_embeddings")


def init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """``_init_weights``: initial values of one module, for ``model.apply``.

    Args:
        module: The module; what is neither linear nor an embedding nor has a projection that ends a branch stays.
        n_layer: Number of blocks.
        initializer_range: Standard deviation of embeddings.
        rescale_prenorm_residual: Whether projections that end a branch are smaller by the root of the branches' number.
        n_residuals_per_layer: Branches per block.
    """
    if isinstance(module, nn.Linear) and module.bias is not None and not getattr(module.bias, "_no_reinit", False):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if not rescale_prenorm_residual:
        return
    for name, parameter in module.named_parameters():
        if name in ("out_proj.weight", "fc2.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            with torch.no_grad():
                parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))
