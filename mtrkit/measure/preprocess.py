"""From an image to what a model takes: resize, crop, normalise.

With Pillow and numpy alone, and to the same numbers as torchvision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtrkit.errors import OptionError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to ``size / crop``, cut out the centre, normalise.

    Attributes:
        size: Height and width that the model takes.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        crop: Share of the resized image that the cut-out covers, in (0, 1].
        interpolation: A name in ``INTERPOLATIONS``.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    interpolation: str

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise OptionError(f"crop={self.crop} must be in (0, 1]: the share of the resized image that is used")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise OptionError(f"interpolation={self.interpolation!r} is unknown; choose one of {known}")
        if not len(self.mean) == len(self.std) == 3 or min(self.std) <= 0:
            raise OptionError(f"mean={self.mean} and std={self.std} must be three numbers each, std above 0")

    @property
    def views(self) -> int:
        """How often the model looks at one image; at a video possibly several times."""
        return 1

    def inputs(self, opened: Any) -> Tensor:
        """(views, 3, H, W) of an opened image."""
        return self(opened)[None]

    def combine(self, logits: Tensor) -> Tensor:
        """What the views of an image, which follow each other, say together: (B, K) of (B · views, K)."""
        return logits

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the image that the model sees, at the model's size."""
        height, width = self.size
        image = self._resize(image)
        left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
        return image.crop((left, top, left + width, top + height))

    def tensor(self, cut: Image.Image) -> Tensor:
        """(3, H, W) float32 from an image that :meth:`cut` returned."""
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, W) float32 from an image of any size."""
        return self.tensor(self.cut(image))

    def _resize(self, image: Image.Image) -> Image.Image:
        """Scale, keeping the aspect, until the cut-out fits; an image of the right size is left as it is."""
        height, width = (math.floor(side / self.crop) for side in self.size)
        if height * image.width >= width * image.height:
            wanted = image.width * height // image.height, height
        else:
            wanted = width, image.height * width // image.width
        if image.size == wanted:
            return image
        return image.resize(wanted, INTERPOLATIONS[self.interpolation])


def preprocess_for(
    config: Mapping[str, Any],
    *,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
) -> Preprocess:
    """Read a model's ``default_cfg``; whatever is given beside it counts more.

    Args:
        config: Keys ``input_size``, ``mean``, ``std``, ``crop_pct`` and ``interpolation``, as timm writes
            them. Missing ones are timm's defaults for ImageNet.
        size: Height and width.
        mean: Per channel.
        std: Per channel.
        crop: Share of the resized image to use.
        interpolation: Name of the resampling filter.
    """
    return Preprocess(
        size=size or tuple(config.get("input_size", (3, 224, 224))[-2:]),
        mean=tuple(mean or config.get("mean") or (0.485, 0.456, 0.406)),
        std=tuple(std or config.get("std") or (0.229, 0.224, 0.225)),
        crop=crop if crop is not None else config.get("crop_pct") or 0.875,
        interpolation=interpolation or config.get("interpolation") or "bicubic",
    )
