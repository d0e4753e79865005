"""Vim: our own models, and the class of hustvl/Vim as its users have it.

Source: Zhu et al., "Vision Mamba", arXiv:2401.09417. Both keep the same block and mixer layout; they differ
in how the model says where its class token stands.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters.base import Adapter, SpecialAt, count_patches, missing_name, register_adapter
from mtrkit.scan import DirectionWeights, MixerWeights, Signals, mixer_forward
from mtrkit.schedule import MambaShape, ModelShape

_MIXER = ("in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj")
_BACKWARD = ("conv1d_b", "x_proj_b", "dt_proj_b", "A_b_log", "D_b")


class IsotropicMamba(Adapter):
    """What the plain stacks of two-direction Mamba blocks have in common."""

    def mismatch(self, model: Any) -> str | None:
        """Look for the stack, the blocks and the mixers by the attributes that the code below reads."""
        missing = missing_name(model, ("patch_embed", "layers", "norm_f", "head"))
        if missing:
            return f"has no `{missing}`"
        layers: Any = model.layers
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return "`layers` is not a list of blocks"
        for index, block in enumerate(layers):
            missing = missing_name(block, ("mixer", "norm", "drop_path"))
            missing = missing or missing_name(block.mixer, (*_MIXER, *_BACKWARD))
            if missing:
                return f"`layers.{index}` has no `{missing}`"
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        """The entries of ``layers``."""
        return list(model.layers)

    def mixer(self, block: Any) -> nn.Module:
        """The block's ``mixer``."""
        return block.mixer

    def weights(self, mixer: Any) -> MixerWeights:
        """The mixer's parameters."""
        raise NotImplementedError

    def run_mixer(self, mixer: Any, hidden: Tensor, reads: frozenset[str]) -> tuple[Tensor, Signals]:
        """Both directions, unfused; the official slow path would drop the backward one."""
        out, signals = mixer_forward(hidden, self.weights(mixer), reads)
        gamma = getattr(mixer, "gamma", None)
        return (out if gamma is None else out * gamma), signals

    def shape(self, model: Any, input_size: tuple[int, ...]) -> ModelShape:
        """Read the sizes off the weights."""
        mixer, patch = model.layers[0].mixer, model.patch_embed.proj
        patches = count_patches(patch, input_size)
        tokens = patches + self.num_class_tokens(model)
        return MambaShape(
            depth=len(model.layers),
            dim=mixer.in_proj.in_features,
            inner=mixer.out_proj.in_features,
            state=mixer.A_log.shape[1],
            dt_rank=mixer.dt_proj.in_features,
            conv=mixer.conv1d.kernel_size[0],
            directions=2,
            tokens=tokens,
            special=len(self.special_at(model)(tokens)),
            patches=patches,
            patch_macs=patch.weight.numel(),
            head_macs=model.head.weight.numel() if hasattr(model.head, "weight") else 0,
        )

    def num_class_tokens(self, model: Any) -> int:
        """Number of tokens in the sequence that are no patch."""
        raise NotImplementedError

    def input_size(self, model: Any) -> tuple[int, ...]:
        """Channels and the image size that the patch embedding was built for."""
        return (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)


@register_adapter
class VimAdapter(IsotropicMamba):
    """mtrkit's own ``VisionMamba``."""

    name = "vim"
    summary = "mtrkit's own Vim models"

    def mismatch(self, model: Any) -> str | None:
        """Our names for the class token and the pooling, beside the layout."""
        missing = missing_name(model, ("class_token", "num_class_tokens", "global_pool"))
        return f"has no `{missing}`" if missing else super().mismatch(model)

    def input_size(self, model: Any) -> tuple[int, ...]:
        """Of images (C, H, W) or clips (C, T, H, W)."""
        return model.patch_embed.input_size

    def weights(self, mixer: Any) -> MixerWeights:
        """As the mixer itself gives them."""
        return mixer.weights()

    def num_class_tokens(self, model: Any) -> int:
        """One, unless there is none."""
        return model.num_class_tokens

    def special_at(self, model: Any) -> SpecialAt:
        """Where the constructor's ``class_token`` says."""
        return {"middle": middle, "front": front, "none": nowhere}[model.class_token]


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
        kinds = {getattr(block.mixer, "bimamba_type", "v2") for block in model.layers}
        if kinds != {"v2"}:
            return f"bimamba_type is {', '.join(sorted(map(str, kinds)))}; only the published v2 is supported"
        return None

    def weights(self, mixer: Any) -> MixerWeights:
        """Read off its submodules; ``if_divide_out`` was spelt ``if_devide_out`` until July 2024."""
        return MixerWeights(
            mixer.in_proj.weight,
            mixer.in_proj.bias,
            mixer.out_proj.weight,
            mixer.out_proj.bias,
            (_direction(mixer, ""), _direction(mixer, "_b")),
            bool(getattr(mixer, "if_divide_out", getattr(mixer, "if_devide_out", False))),
        )

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


_RANDOM_ORDER = ("if_random_cls_token_position", "if_random_token_rank")


def nowhere(num_tokens: int) -> tuple[int, ...]:
    """No special token."""
    del num_tokens
    return ()


def front(num_tokens: int) -> tuple[int, ...]:
    """A class token before the patches."""
    del num_tokens
    return (0,)


def last(num_tokens: int) -> tuple[int, ...]:
    """The last token, where a model without a class token reads its answer."""
    return (num_tokens - 1,)


def middle(num_tokens: int) -> tuple[int, ...]:
    """A class token after half of the M = L − 1 patches, rounded down."""
    return ((num_tokens - 1) // 2,)


def both_ends(num_tokens: int) -> tuple[int, ...]:
    """One class token before and one after the patches."""
    return (0, num_tokens - 1)


def _direction(mixer: Any, suffix: str) -> DirectionWeights:
    """The parameters of one direction; the backward ones end in ``_b``, its A in ``A_b_log``."""
    conv, dt_proj = getattr(mixer, f"conv1d{suffix}"), getattr(mixer, f"dt_proj{suffix}")
    return DirectionWeights(
        conv.weight,
        conv.bias,
        getattr(mixer, f"x_proj{suffix}").weight,
        dt_proj.weight,
        dt_proj.bias,
        -torch.exp(getattr(mixer, f"A{suffix}_log").float()),
        getattr(mixer, f"D{suffix}").float(),
    )
