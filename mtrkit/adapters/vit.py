"""ViT and DeiT as timm has them: the other side of the papers' comparisons.

Source: Dosovitskiy et al., arXiv:2010.11929; Touvron et al., "DeiT", arXiv:2012.12877.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt, count_patches, missing_name, register_adapter
from mtrkit.adapters.sizes import macs, size_of
from mtrkit.scan import Signals
from mtrkit.schedule import ModelShape, TransformerShape
from mtrkit.types import MixerCall

_BLOCK = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
_ATTENTION = ("qkv", "num_heads", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop", "scale")


@register_adapter
class TimmVitAdapter(Adapter):
    """``VisionTransformer`` of timm, with one, two or no prefix tokens and with registers."""

    name = "timm_vit"
    summary = "ViT and DeiT of timm, reduced between two blocks, or between attention and MLP"
    marks = ("patch_embed", "blocks", "norm", "head", "num_prefix_tokens", "attn_pool")
    single_stream = True
    package = "timm."
    attention_blocks = True
    signals = frozenset({"keys", "attention"})
    call_argument = None
    entries = ("forward_features", "forward_intermediates")

    def mismatch(self, model: Any) -> str | None:
        missing = super().mismatch(model)
        if missing:
            return missing
        if not isinstance(model.blocks, nn.Sequential) or not len(model.blocks):
            return "`blocks` is not a sequence of blocks"
        for index, block in enumerate(model.blocks):
            missing = missing_name(block, _BLOCK) or missing_name(block.attn, _ATTENTION)
            if missing:
                return f"`blocks.{index}` has no `{missing}`"
        return None

    def refusal(self, model: Any) -> str | None:
        if any(getattr(block.attn, name, None) is not None for block in model.blocks for name in ("gate", "rel_pos")):
            return "its attention is gated or has relative positions"
        if getattr(model, "rope", None) is not None:
            return "its attention rotates the tokens by their positions"
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(model.blocks)

    def mixer(self, block: Any) -> nn.Module:
        return block.attn

    def run_mixer(self, mixer: Any, hidden: Tensor, call: MixerCall) -> tuple[Tensor, Signals]:
        return _attend(mixer, hidden, call.reads, call.size)

    def run_attention(self, block: Any, tokens: Tensor, call: MixerCall) -> Tensor:
        return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens), call)))

    def run_mlp(self, block: Any, tokens: Tensor) -> Tensor:
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def special_at(self, model: Any) -> SpecialAt:
        return partial(first, model.num_prefix_tokens)

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        patch, block = model.patch_embed.proj, model.blocks[0]
        patches = count_patches(patch, input_size)
        return TransformerShape(
            depth=len(model.blocks),
            dim=size_of(block.attn.proj, "out_features"),
            hidden=size_of(block.mlp.fc1, "out_features"),
            heads=block.attn.num_heads,
            tokens=patches + model.num_prefix_tokens,
            special=model.num_prefix_tokens,
            patches=patches,
            patch_macs=macs(patch),
            head_macs=macs(model.head),
        )

    def input_size(self, model: Any) -> tuple[int, ...]:
        return (size_of(model.patch_embed.proj, "in_channels"), *model.patch_embed.img_size)

    def refusal_of_call(self, entry: str, *args: Any, **kwargs: Any) -> str | None:
        """Masks have a row per token; intermediate outputs are collected between the blocks."""
        if entry == "forward_intermediates":
            return "forward_intermediates reads between the blocks of a ViT, where a reduced model has fewer tokens"
        given = (*args, *(value for name, value in kwargs.items() if name != "x"))
        if any(value is not None and value is not False for value in given):
            return "an attention mask has a row per token, and a reduced model has fewer"
        return None


def first(count: int, num_tokens: int) -> tuple[int, ...]:
    """The special tokens before the patches."""
    del num_tokens
    return tuple(range(count))


def _attend(mixer: Any, hidden: Tensor, reads: frozenset[str], size: Tensor | None = None) -> tuple[Tensor, Signals]:
    """Attention on normalised tokens (B, L, D); keys are averaged over the heads, as is the class token's attention.

    With ``size`` (B, L, 1) it is ToMe's proportional attention, softmax(q·kᵀ / √d + log size): a token that stands for
    n patches weighs as much as n equal ones.
    """
    qkv = mixer.qkv(hidden).unflatten(2, (3, mixer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = mixer.q_norm(q), mixer.k_norm(k)
    bias = None if size is None else _log_size(size, q.dtype)
    dropout = mixer.attn_drop.p if mixer.training else 0.0
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=mixer.scale)
    x = x.transpose(1, 2).flatten(2)
    x = mixer.norm(x) if hasattr(mixer, "norm") else x
    signals = Signals(
        keys=k.mean(dim=1) if "keys" in reads else None,
        attention=_of_class_token(q, k, mixer.scale, bias) if "attention" in reads else None,
    )
    return mixer.proj_drop(mixer.proj(x)), signals


def _log_size(size: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, L) what is added to the attention logits of every query."""
    fine = size.to(torch.promote_types(size.dtype, dtype))
    return fine.log().to(dtype).transpose(1, 2)[:, None]


def _of_class_token(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """(B, L, 1) attention that the first token pays to each, mean over the heads."""
    logits = q[:, :, :1] * scale @ k.transpose(2, 3)
    attention = (logits if bias is None else logits + bias).softmax(dim=-1)
    return attention.mean(dim=1).transpose(1, 2)
