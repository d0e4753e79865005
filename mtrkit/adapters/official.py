"""Adapters for the official repositories of Vim, VideoMamba and Mamba-Reg.

Sources: Zhu et al., "Vision Mamba", arXiv:2401.09417; Li et al., "VideoMamba", arXiv:2403.06977; Wang et al.,
"Mamba-R: Vision Mamba ALSO Needs Registers", arXiv:2405.14858.
"""

from functools import partial
from typing import Any

from torch import nn

from mtrkit.adapters.base import SpecialAt, register_adapter
from mtrkit.adapters.sizes import macs, size_of
from mtrkit.adapters.stack import (
    STACK,
    IsotropicMamba,
    both_ends,
    front,
    front_and_middle,
    last,
    middle,
    nowhere,
    spread,
    two_in_front,
)
from mtrkit.adapters.unsupported import known_family

_MOVES_THE_CLASS_TOKEN = ("if_random_cls_token_position", "if_random_token_rank")
_BETWEEN_BLOCKS = "return_intermediate_output"  # of Vim4Path


class OfficialMamba(IsotropicMamba):
    """A stack whose mixers are the ``Mamba`` of an official repository: copies of one another with another switch."""

    switch: str  # attribute of a mixer that says how it scans
    two_ways: object = True  # the switch's value if the mixer scans in two directions, each with its own weights

    def mismatch(self, model: Any) -> str | None:
        wrong = super().mismatch(model)
        fork = None if wrong else known_family(model)
        return f"is of the family {fork.name}" if fork else wrong

    def refusal(self, model: Any) -> str | None:
        for index, block in enumerate(model.layers):
            scans = getattr(block.mixer, self.switch, self.two_ways)
            if scans != self.two_ways:
                return (
                    f"`layers.{index}.mixer` has {self.switch}={scans!r}; the published models have "
                    f"{self.two_ways!r}, which scans in two directions with weights of their own"
                )
            if not getattr(block.mixer, "use_fast_path", True):
                return (
                    f"`layers.{index}.mixer` has use_fast_path=False, with which its own code leaves out the backward "
                    "direction; build the model with use_fast_path=True, or set it on every mixer"
                )
        return super().refusal(model)


@register_adapter
class HustvlVimAdapter(OfficialMamba):
    """``VisionMamba`` of hustvl/Vim, 2024-02 to its latest revision, and of forks that only embed otherwise."""

    name = "hustvl_vim"
    summary = "VisionMamba of the hustvl/Vim repository"
    marks: tuple[str, ...] = (*STACK, "if_cls_token", "final_pool_type", "if_rope")
    entries = ("forward_features",)
    switch, two_ways = "bimamba_type", "v2"
    arguments: tuple[str, ...] = (
        "inference_params",
        *_MOVES_THE_CLASS_TOKEN,
        _BETWEEN_BLOCKS,
    )  # of forward_features, behind the input

    def mismatch(self, model: Any) -> str | None:
        return super().mismatch(model) or ("has `spectrogram_size`" if hasattr(model, "spectrogram_size") else None)

    def refusal(self, model: Any) -> str | None:
        if model.if_rope:
            return (
                "if_rope=True rotates the tokens before every block with a table that has one row per patch; "
                "use a checkpoint with absolute positions (the midclstok releases)"
            )
        if getattr(model, "if_bidirectional", False):
            return "if_bidirectional=True runs the blocks in pairs on flipped sequences"
        if getattr(model, "flip_img_sequences_ratio", -1.0) > 0:
            return "flip_img_sequences_ratio reverses sequences at random; set it to -1"
        return super().refusal(model)

    def averages_directions(self, mixer: Any) -> bool:
        # The name was misspelt until July 2024.
        return bool(getattr(mixer, "if_divide_out", getattr(mixer, "if_devide_out", False)))

    def num_class_tokens(self, model: Any) -> int:
        if not model.if_cls_token:
            return 0
        return 2 if getattr(model, "use_double_cls_token", False) or _embeds_a_second(model) else 1

    def special_at(self, model: Any) -> SpecialAt:
        if not model.if_cls_token:
            return last if model.final_pool_type == "none" else nowhere
        if getattr(model, "use_double_cls_token", False):
            return both_ends
        in_middle, second = getattr(model, "use_middle_cls_token", False), _embeds_a_second(model)
        return (front_and_middle if second else middle) if in_middle else (two_in_front if second else front)

    def refusal_of_call(self, entry: str, *args: Any, **kwargs: Any) -> str | None:
        named = dict(zip(self.arguments, args, strict=False)) | kwargs
        moves = [name for name in _MOVES_THE_CLASS_TOKEN if named.get(name)]
        if moves:
            return f"{', '.join(moves)} moves the class token, and a reduced model has to know where it stands"
        if named.get(_BETWEEN_BLOCKS):
            return f"{_BETWEEN_BLOCKS} reads between the blocks, where a reduced model has fewer tokens"
        return None


def _embeds_a_second(model: Any) -> bool:
    """As in Vim4Path: a class token before the patches, and then the one that is read, where the switches say."""
    return hasattr(model, "prepare_tokens") and bool(getattr(model, "if_abs_pos_embed", False))


@register_adapter
class VideoMambaAdapter(OfficialMamba):
    """``VisionMamba`` of ``image_sm`` and ``video_sm`` in OpenGVLab/VideoMamba; the head reads the first token."""

    name = "videomamba"
    summary = "VisionMamba of the OpenGVLab/VideoMamba repository, images and clips"
    marks = (*STACK, "cls_token", "pos_embed")
    switch = "bimamba"

    def mismatch(self, model: Any) -> str | None:
        wrong = super().mismatch(model)
        if wrong:
            return wrong
        missing = next((i for i, block in enumerate(model.layers) if not hasattr(block.mixer, self.switch)), None)
        return None if missing is None else f"`layers.{missing}.mixer` has no `{self.switch}`"

    def averages_directions(self, mixer: Any) -> bool:
        return False

    def num_class_tokens(self, model: Any) -> int:
        return 1

    def special_at(self, model: Any) -> SpecialAt:
        return front

    def input_size(self, model: Any) -> tuple[int, ...]:
        channels, *size = super().input_size(model)
        times = getattr(model, "temporal_pos_embedding", None)
        if times is None:
            return (channels, *size)
        return (channels, times.shape[1] * size_of(model.patch_embed.proj, "kernel_size")[0], *size)


@register_adapter
class MambaRegAdapter(OfficialMamba):
    """``VisionMamba`` of wangf3014/Mamba-Reg; the head reads all of its ``num_cls_tokens`` registers."""

    name = "mambar"
    summary = "VisionMamba of the wangf3014/Mamba-Reg repository"
    marks = (*STACK, "num_cls_tokens", "cls_positions", "token_idx", "cls_reduce")
    switch = "biscan"

    def averages_directions(self, mixer: Any) -> bool:
        return True

    def num_class_tokens(self, model: Any) -> int:
        return model.num_cls_tokens

    def special_at(self, model: Any) -> SpecialAt:
        return partial(spread, model.num_cls_tokens)

    def head_macs(self, model: Any) -> int:
        neck = getattr(model, "neck", nn.Identity())
        return macs(neck) * model.num_cls_tokens + super().head_macs(model)
