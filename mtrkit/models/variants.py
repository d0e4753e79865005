"""The models by name: what each is built from, how images are prepared for it, and where its weights are."""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

from mtrkit.errors import OptionError
from mtrkit.models.mambar import MambaReg
from mtrkit.models.registry import Builder, register_model
from mtrkit.models.videomamba import VideoMamba
from mtrkit.models.vim import VisionMamba

_DATA = Path(__file__).parents[1] / "data"


class Family(NamedTuple):
    """What several variants have in common; called, it gives one of them."""

    cls: type[VisionMamba]
    paper: str  # its number on arXiv
    data: dict[str, Any]  # how images are prepared
    options: dict[str, Any] = {}  # of the class
    repo: str = ""  # on the Hugging Face Hub, {size} being the second word of the variant's name
    bundled: bool = False  # whether the weights come with mtrkit

    def __call__(self, about: str, file: str = "", top1: float = 0.0, **options: Any) -> "Variant":
        """The variant with these options on top of the family's."""
        return Variant(self, about, file, top1, self.options | options)


class Variant(NamedTuple):
    """What stands behind a name."""

    family: Family
    about: str  # in one sentence
    file: str  # in the family's repository, or empty
    top1: float  # published for that file: ImageNet-1k validation, or Kinetics-400 for clips
    options: dict[str, Any]  # of the class, where the user gives no others


class Release(NamedTuple):
    """One published file."""

    repo: str
    file: str
    top1: float


_IMAGENET: dict[str, Any] = {"crop_pct": 0.875, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_KINETICS = _IMAGENET | {"crop_pct": 1.0, "interpolation": "bilinear"}
_CIFAR10: dict[str, Any] = {"crop_pct": 1.0, "mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
_MICRO: dict[str, Any] = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 96, "depth": 12}
_FRONT: dict[str, Any] = {"class_token": "front", "halve": False}
_AVERAGED: dict[str, Any] = {"class_token": "none", "global_pool": "avg"}

_VIM = Family(VisionMamba, "2401.09417", _IMAGENET, {}, "hustvl/Vim-{size}-midclstok")
_VIM_MICRO = Family(VisionMamba, "2401.09417", _CIFAR10, _MICRO, bundled=True)
_VIDEOMAMBA = Family(VisionMamba, "2403.06977", _IMAGENET, _FRONT, "OpenGVLab/VideoMamba")
_VIDEOMAMBA_MICRO = Family(VisionMamba, "2403.06977", _CIFAR10, _MICRO | _FRONT, bundled=True)
_CLIPS = Family(VideoMamba, "2403.06977", _KINETICS, {"num_classes": 400}, "OpenGVLab/VideoMamba")
_MAMBAR = Family(MambaReg, "2405.14858", _IMAGENET | {"crop_pct": 1.0})


def _clips(size: str, short: str, parameters: str, top1: dict[int, float], **options: Any) -> dict[str, Variant]:
    """A variant for every number of frames that VideoMamba was released for, with the accuracy published for it."""
    return {
        f"videomamba_{size}_patch16_224_f{frames}": _CLIPS(
            f"VideoMamba-{short} for clips of {frames} frames, {parameters} parameters.",
            f"videomamba_{size[0]}16_k400_f{frames}_res224.pth",
            accuracy,
            num_frames=frames,
            **options,
        )
        for frames, accuracy in top1.items()
    }


VARIANTS = {
    "vim_tiny_patch16_224": _VIM("Vim-Ti, 7.1 M parameters.", "vim_t_midclstok_76p1acc.pth", 76.1, embed_dim=192),
    "vim_tiny_patch16_stride8_224": _VIM(
        "Vim-Ti on overlapping patches, 730 tokens.", "vim_t_midclstok_ft_78p3acc.pth", 78.3, embed_dim=192, stride=8
    ),
    "vim_small_patch16_224": _VIM("Vim-S, 25.8 M parameters.", "vim_s_midclstok_80p5acc.pth", 80.5, embed_dim=384),
    "vim_small_patch16_stride8_224": _VIM(
        "Vim-S on overlapping patches, 730 tokens.", "vim_s_midclstok_ft_81p6acc.pth", 81.6, embed_dim=384, stride=8
    ),
    "vim_base_patch16_224": _VIM("Vim-B, 97.6 M parameters.", "vim_b_midclstok_81p9acc.pth", 81.9, embed_dim=768),
    "vim_micro_patch4_32": _VIM_MICRO("A Vim for CIFAR-sized images, 1 M parameters, 65 tokens."),
    "vim_micro_patch4_stride2_32": _VIM_MICRO("The same on overlapping patches, 226 tokens.", stride=2),
    "vim_micro_patch4_stride2_avgpool_32": _VIM_MICRO(
        "The same without a class token, the mean of the 225 patches classified.", stride=2, **_AVERAGED
    ),
    "vim_nano_patch4_stride2_32": _VIM_MICRO(
        "Two thirds of the depth of ``vim_micro_patch4_stride2_32``: the smaller dense model to compare with.",
        depth=8,
        stride=2,
    ),
    "videomamba_micro_patch4_stride2_32": _VIDEOMAMBA_MICRO(
        "``vim_micro_patch4_stride2_32`` in the form of VideoMamba: the class token in front, the plain sum.", stride=2
    ),
    "videomamba_tiny_patch16_224": _VIDEOMAMBA(
        "VideoMamba-Ti for images, 7.1 M parameters.", "videomamba_t16_in1k_res224.pth", 76.9, embed_dim=192
    ),
    "videomamba_small_patch16_224": _VIDEOMAMBA(
        "VideoMamba-S for images, 25.8 M parameters.", "videomamba_s16_in1k_res224.pth", 81.2, embed_dim=384
    ),
    "videomamba_middle_patch16_224": _VIDEOMAMBA(
        "VideoMamba-M for images, 74.2 M parameters.", "videomamba_m16_in1k_res224.pth", 82.8, embed_dim=576, depth=32
    ),
    "videomamba_base_patch16_224": _VIDEOMAMBA(
        "VideoMamba-B for images, 97.6 M parameters.", "videomamba_b16_in1k_res224.pth", 82.7, embed_dim=768
    ),
    **_clips("tiny", "Ti", "7.0 M", {8: 76.9, 16: 78.1, 32: 78.8, 64: 79.6}, embed_dim=192),
    **_clips("small", "S", "25.6 M", {8: 79.3, 16: 80.8, 32: 81.5, 64: 81.8}, embed_dim=384),
    **_clips("middle", "M", "73.9 M", {8: 80.6, 16: 81.9, 32: 82.4, 64: 82.8}, embed_dim=576, depth=32),
    "mambar_tiny_patch16_224": _MAMBAR("Mamba-Reg-Ti, 9.3 M parameters, 12 registers.", embed_dim=192),
    "mambar_small_patch16_224": _MAMBAR("Mamba-Reg-S, 27.8 M parameters, 12 registers.", embed_dim=384, reduce=2),
    "mambar_base_patch16_224": _MAMBAR("Mamba-Reg-B, 99.3 M parameters, 12 registers.", embed_dim=768, reduce=4),
    "mambar_large_patch16_224": _MAMBAR(
        "Mamba-Reg-L, 341.2 M parameters, 16 registers.", embed_dim=1024, depth=48, num_registers=16, reduce=8
    ),
}

OFFICIAL = {
    name: Release(variant.family.repo.format(size=name.split("_")[1]), variant.file, variant.top1)
    for name, variant in VARIANTS.items()
    if variant.file
}
BUNDLED = {name: _DATA / f"{name}.safetensors" for name, variant in VARIANTS.items() if variant.family.bundled}


def _cfg(name: str, variant: Variant) -> dict[str, Any]:
    """Preprocessing and weights in the form that timm uses."""
    options, release = variant.options, OFFICIAL.get(name)
    side, frames = options.get("img_size", 224), options.get("num_frames")
    cfg = {
        "architecture": name,
        "paper_ids": f"arXiv:{variant.family.paper}",
        "num_classes": options.get("num_classes", 1000),
        "input_size": (3, side, side) if frames is None else (3, frames, side, side),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    } | variant.family.data
    if name in BUNDLED:
        return cfg | {"file": str(BUNDLED[name]), "custom_load": True}
    return cfg | ({"hf_hub_id": release.repo, "hf_hub_filename": release.file, "custom_load": "hf"} if release else {})


def _builder(name: str, variant: Variant) -> Builder:
    """A function of the model's name, which takes nothing but options of the model."""

    def build(**options: Any) -> VisionMamba:
        _check_options(name, variant.family.cls, options)
        model = variant.family.cls(**(variant.options | options))
        model.pretrained_cfg = dict(default_cfgs[name])
        return model

    build.__name__, build.__doc__ = name, variant.about
    return build


def _check_options(name: str, cls: type[VisionMamba], options: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters | inspect.signature(VisionMamba).parameters
    known = [option for option, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise OptionError(f"{name} has no option {', '.join(unknown)}; known: {', '.join(known)}")


default_cfgs = {name: _cfg(name, variant) for name, variant in VARIANTS.items()}
for _name, _variant in VARIANTS.items():
    register_model(_builder(_name, _variant))
