"""The models by name: what each is built from, how images are prepared for it, and where its weights are."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mtrkit.errors import OptionError
from mtrkit.models.mambar import MambaReg
from mtrkit.models.registry import register_model
from mtrkit.models.releases import BUNDLED, CLIP_FRAMES, OFFICIAL
from mtrkit.models.videomamba import VideoMamba
from mtrkit.models.vim import VisionMamba

default_cfgs: dict[str, dict[str, Any]] = {}

_IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
_CIFAR10: dict[str, Any] = _IMAGENET | {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.247, 0.2435, 0.2616),
}


def _configure(names: tuple[str, ...], paper: str, cfg: dict[str, Any]) -> None:
    """Enter the preprocessing of models, and where their weights are, in the form timm uses."""
    for name in names:
        weights: dict[str, Any] = {}
        if name in OFFICIAL:
            release = OFFICIAL[name]
            weights = {"hf_hub_id": release.repo, "hf_hub_filename": release.file, "custom_load": "hf"}
        elif name in BUNDLED:
            weights = {"file": str(BUNDLED[name]), "custom_load": True}
        default_cfgs[name] = {"architecture": name, "paper_ids": f"arXiv:{paper}"} | cfg | weights


def _create(cls: type[VisionMamba], name: str, options: dict[str, Any], **variant: Any) -> VisionMamba:
    parameters = inspect.signature(cls).parameters | inspect.signature(VisionMamba).parameters
    known = [option for option, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise OptionError(f"{name} has no option {', '.join(unknown)}; known: {', '.join(known)}")
    model = cls(**(variant | options))
    model.pretrained_cfg = default_cfgs[name]
    return model


_configure(
    (
        "vim_tiny_patch16_224",
        "vim_tiny_patch16_stride8_224",
        "vim_small_patch16_224",
        "vim_small_patch16_stride8_224",
        "vim_base_patch16_224",
    ),
    "2401.09417",
    _IMAGENET,
)
_configure(
    (
        "vim_micro_patch4_32",
        "vim_micro_patch4_stride2_32",
        "vim_micro_patch4_stride2_avgpool_32",
        "vim_nano_patch4_stride2_32",
    ),
    "2401.09417",
    _CIFAR10,
)
_VIDEOMAMBA = tuple(f"videomamba_{size}_patch16_224" for size in ("tiny", "small", "middle", "base"))
_configure(_VIDEOMAMBA, "2403.06977", _IMAGENET)
_configure(("videomamba_micro_patch4_stride2_32",), "2403.06977", _CIFAR10)
_MAMBAR = tuple(f"mambar_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
_configure(_MAMBAR, "2405.14858", _IMAGENET | {"crop_pct": 1.0})


@register_model
def vim_tiny_patch16_224(**options: Any) -> VisionMamba:
    """Vim-Ti, 7.1 M parameters."""
    return _create(VisionMamba, "vim_tiny_patch16_224", options, embed_dim=192)


@register_model
def vim_tiny_patch16_stride8_224(**options: Any) -> VisionMamba:
    """Vim-Ti on overlapping patches, 730 tokens."""
    return _create(VisionMamba, "vim_tiny_patch16_stride8_224", options, embed_dim=192, stride=8)


@register_model
def vim_small_patch16_224(**options: Any) -> VisionMamba:
    """Vim-S, 25.8 M parameters."""
    return _create(VisionMamba, "vim_small_patch16_224", options, embed_dim=384)


@register_model
def vim_small_patch16_stride8_224(**options: Any) -> VisionMamba:
    """Vim-S on overlapping patches, 730 tokens."""
    return _create(VisionMamba, "vim_small_patch16_stride8_224", options, embed_dim=384, stride=8)


@register_model
def vim_base_patch16_224(**options: Any) -> VisionMamba:
    """Vim-B, 97.6 M parameters."""
    return _create(VisionMamba, "vim_base_patch16_224", options, embed_dim=768)


_MICRO: dict[str, Any] = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 96, "depth": 12}


@register_model
def vim_micro_patch4_32(**options: Any) -> VisionMamba:
    """A Vim for CIFAR-sized images, 1 M parameters, 65 tokens."""
    return _create(VisionMamba, "vim_micro_patch4_32", options, **_MICRO)


@register_model
def vim_micro_patch4_stride2_32(**options: Any) -> VisionMamba:
    """The same on overlapping patches, 226 tokens."""
    return _create(VisionMamba, "vim_micro_patch4_stride2_32", options, **_MICRO, stride=2)


@register_model
def vim_micro_patch4_stride2_avgpool_32(**options: Any) -> VisionMamba:
    """The same without a class token, the mean of the 225 patches classified."""
    pooled = {"class_token": "none", "global_pool": "avg"}
    return _create(VisionMamba, "vim_micro_patch4_stride2_avgpool_32", options, **_MICRO, stride=2, **pooled)


@register_model
def vim_nano_patch4_stride2_32(**options: Any) -> VisionMamba:
    """Two thirds of the depth of ``vim_micro_patch4_stride2_32``: the smaller dense model to compare with."""
    return _create(VisionMamba, "vim_nano_patch4_stride2_32", options, **(_MICRO | {"depth": 8}), stride=2)


_FRONT: dict[str, Any] = {"class_token": "front", "halve": False}


@register_model
def videomamba_micro_patch4_stride2_32(**options: Any) -> VisionMamba:
    """``vim_micro_patch4_stride2_32`` in the form of VideoMamba: the class token in front, the plain sum."""
    return _create(VisionMamba, "videomamba_micro_patch4_stride2_32", options, **_MICRO, **_FRONT, stride=2)


@register_model
def videomamba_tiny_patch16_224(**options: Any) -> VisionMamba:
    """VideoMamba-Ti for images, 7.1 M parameters."""
    return _create(VisionMamba, "videomamba_tiny_patch16_224", options, **_FRONT, embed_dim=192)


@register_model
def videomamba_small_patch16_224(**options: Any) -> VisionMamba:
    """VideoMamba-S for images, 25.8 M parameters."""
    return _create(VisionMamba, "videomamba_small_patch16_224", options, **_FRONT, embed_dim=384)


@register_model
def videomamba_middle_patch16_224(**options: Any) -> VisionMamba:
    """VideoMamba-M for images, 74.2 M parameters."""
    return _create(VisionMamba, "videomamba_middle_patch16_224", options, **_FRONT, embed_dim=576, depth=32)


@register_model
def videomamba_base_patch16_224(**options: Any) -> VisionMamba:
    """VideoMamba-B for images, 97.6 M parameters."""
    return _create(VisionMamba, "videomamba_base_patch16_224", options, **_FRONT, embed_dim=768)


def _register_clips(size: str, short: str, parameters: str, **variant: Any) -> None:
    """Make VideoMamba of one size known for every length of clip that it was released for."""
    for frames in CLIP_FRAMES:
        name = f"videomamba_{size}_patch16_224_f{frames}"
        _configure((name,), "2403.06977", _IMAGENET | {"num_classes": 400})
        build = _clip_builder(name, {"num_frames": frames, "num_classes": 400} | variant)
        build.__doc__ = f"VideoMamba-{short} for clips of {frames} frames, {parameters} parameters."
        register_model(build)


def _clip_builder(name: str, variant: dict[str, Any]) -> Callable[..., VisionMamba]:
    """A function of the model's name, which takes nothing but options of the model."""

    def build(**options: Any) -> VisionMamba:
        return _create(VideoMamba, name, options, **variant)

    build.__name__ = name
    return build


_register_clips("tiny", "Ti", "7.0 M", embed_dim=192)
_register_clips("small", "S", "25.6 M", embed_dim=384)
_register_clips("middle", "M", "73.9 M", embed_dim=576, depth=32)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: VisionMamba) -> dict[str, Tensor]:
    """Fit weights to ``model``, under the name that timm uses; see :meth:`VisionMamba.adapt_state_dict`."""
    return model.adapt_state_dict(state_dict)


@register_model
def mambar_tiny_patch16_224(**options: Any) -> VisionMamba:
    """Mamba-Reg-Ti, 9.3 M parameters, 12 registers."""
    return _create(MambaReg, "mambar_tiny_patch16_224", options, embed_dim=192)


@register_model
def mambar_small_patch16_224(**options: Any) -> VisionMamba:
    """Mamba-Reg-S, 27.8 M parameters, 12 registers."""
    return _create(MambaReg, "mambar_small_patch16_224", options, embed_dim=384, reduce=2)


@register_model
def mambar_base_patch16_224(**options: Any) -> VisionMamba:
    """Mamba-Reg-B, 99.3 M parameters, 12 registers."""
    return _create(MambaReg, "mambar_base_patch16_224", options, embed_dim=768, reduce=4)


@register_model
def mambar_large_patch16_224(**options: Any) -> VisionMamba:
    """Mamba-Reg-L, 341.2 M parameters, 16 registers."""
    return _create(MambaReg, "mambar_large_patch16_224", options, embed_dim=1024, depth=48, num_registers=16, reduce=8)
