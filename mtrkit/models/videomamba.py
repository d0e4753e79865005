"""VideoMamba: the Vim stack with the class token in front and the plain sum of the directions, for images and clips.

Parameters have the names and shapes of the official release, so its state dicts load strictly.

Source: Li et al., "VideoMamba: State Space Model for Efficient Video Understanding", arXiv:2403.06977.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.errors import InputError, OptionError
from mtrkit.models.fitting import Fit
from mtrkit.models.layers import PatchEmbed, Size
from mtrkit.models.positions import resize_frames
from mtrkit.models.vim import VisionMamba

_FRAMES = "temporal_pos_embedding"


class ClipEmbed(PatchEmbed):
    """Patches of the frames of a clip as tokens, frame by frame and row by row.

    Args:
        img_size: Height and width that the frames must have.
        patch_size: Height and width of a patch.
        stride: As ``patch_size``; clips have no overlapping patches.
        in_chans: Channels of the frames.
        embed_dim: Width D of the tokens.
        dynamic_img_size: Whether clips of every size and length are taken.
        num_frames: T, frames of a clip.
        tubelet_size: Frames that one patch covers.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        stride: Size | None = None,
        in_chans: int = 3,
        embed_dim: int = 192,
        dynamic_img_size: bool = False,
        num_frames: int = 8,
        tubelet_size: int = 1,
    ) -> None:
        if stride not in (None, patch_size):
            raise OptionError(f"stride={stride} differs from patch_size={patch_size}; patches of a clip do not overlap")
        self.tubelet_size = tubelet_size
        self._set_frames(num_frames)
        super().__init__(img_size, patch_size, stride, in_chans, embed_dim, dynamic_img_size)
        kernel = (tubelet_size, *self.patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel, kernel)

    def set_input_size(self, img_size: Size, num_frames: int | None = None) -> None:
        """Take clips of another size, and of another length if it is given."""
        self.check_img_size(img_size)  # before anything changes
        if num_frames is not None:
            self._set_frames(num_frames)
        super().set_input_size(img_size)

    def _set_frames(self, num_frames: int) -> None:
        size = self.tubelet_size
        if size < 1 or num_frames < size or num_frames % size:
            raise OptionError(f"num_frames={num_frames} must be a multiple of tubelet_size={size}")
        self.num_frames = num_frames

    @property
    def num_steps(self) -> int:
        """Patches in the direction of time."""
        return self.num_frames // self.tubelet_size

    @property
    def num_patches(self) -> int:
        """M, patches of all frames."""
        return self.num_steps * self.grid_size[0] * self.grid_size[1]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels, frames, height and width of a clip."""
        return (self.in_chans, self.num_frames, *self.img_size)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        super()._check_size(shape)
        if shape[2] % self.tubelet_size:
            raise InputError(f"got clips of {shape[2]} frames, expected a multiple of tubelet_size={self.tubelet_size}")

    def _other_model(self, dimensions: int) -> str:
        if dimensions != 4:
            return ""
        return "for images take a model such as mtrkit.create_model('videomamba_tiny_patch16_224')"

    def _remedy(self) -> str:
        return (
            "sample so many frames of this size, call model.set_input_size((height, width), num_frames=...), which "
            "interpolates the positions, or build the model for them or, with dynamic_img_size=True, for all"
        )


class VideoMamba(VisionMamba):
    """VideoMamba for clips (B, C, T, H, W): one class token in front, positions in space and in time.

    Args:
        num_frames: T, frames of a clip; others raise until :meth:`set_input_size`, unless
            ``dynamic_img_size=True`` takes every length.
        tubelet_size: Frames that one patch covers.
        **options: As of :class:`VisionMamba`.

    Raises:
        OptionError: A class token elsewhere, or a value out of range.
    """

    patch_embed: ClipEmbed

    def __init__(self, num_frames: int = 8, tubelet_size: int = 1, **options: Any) -> None:
        place = options.get("class_token", "front")
        if place != "front":
            raise OptionError(f"class_token={place!r}: a VideoMamba of clips has it in front; leave class_token out")
        defaults: dict[str, Any] = {"class_token": "front", "halve": False}
        embed = partial(ClipEmbed, num_frames=num_frames, tubelet_size=tubelet_size)
        super().__init__(**(defaults | options), embed_layer=embed)
        steps = num_frames // tubelet_size
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, steps, self.embed_dim))

    def set_input_size(self, img_size: Size, num_frames: int | None = None) -> None:
        """Take clips of another height and width, and of another length if it is given; positions are interpolated.

        ``pos_embed`` and ``temporal_pos_embedding`` become other parameters if their shapes change.
        """
        self.patch_embed.check_img_size(img_size)
        self.patch_embed.set_input_size(self.patch_embed.img_size, num_frames)
        super().set_input_size(img_size)
        table = self.temporal_pos_embedding
        if table.shape[1] != self.patch_embed.num_steps:
            resized = resize_frames(table.detach(), self.patch_embed.num_steps)
            self.temporal_pos_embedding = nn.Parameter(resized, requires_grad=table.requires_grad)

    def _embed(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 1 + M, D), frame after frame behind the class token."""
        patches, positions = self.patch_embed(x), self._positions(x)
        frames: Tensor = self.temporal_pos_embedding
        if self.patch_embed.dynamic_img_size:
            frames = resize_frames(frames, x.shape[2] // self.patch_embed.tubelet_size)
        patches = patches.unflatten(1, (frames.shape[1], -1))
        patches = patches + positions[:, None, 1:] + frames[:, :, None]
        token = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat([token, patches.flatten(1, 2)], dim=1))

    def _map_shape(self, x: Tensor) -> tuple[int, ...]:
        """Steps in time, rows and columns of the patches of x."""
        return (x.shape[2] // self.patch_embed.tubelet_size, *super()._map_shape(x))

    def adapt_state_dict(self, state: dict[str, Tensor], fit: Fit | None = None) -> dict[str, Tensor]:
        """Interpolate positions made for another grid (bicubic) or other frames (linear), or take those for images."""
        fit = Fit(initial=True, new_head=True) if fit is None else fit
        frames = state.get(_FRAMES)
        if frames is None:
            return super().adapt_state_dict(state, fit)
        if fit.origin.halve is None:  # clips have this family alone
            mixer: Any = self.layers[0].mixer
            fit.origin = replace(fit.origin, class_token=self.class_token, halve=mixer.halve)
        rest = super().adapt_state_dict({name: value for name, value in state.items() if name != _FRAMES}, fit)
        return rest | {_FRAMES: self._fit_frames(frames, fit)}

    def _fit_frames(self, frames: Tensor, fit: Fit) -> Tensor:
        """Positions in time (1, T, D) for this model's."""
        wanted = self.temporal_pos_embedding.shape[1]
        if frames.dim() != 3 or frames.shape[1] in (0, wanted):
            return frames
        fit.notes.append(f"positions for {frames.shape[1]} steps in time were interpolated to {wanted}")
        return resize_frames(frames, wanted)
