"""Images with a class for every pixel, in the folders of ADE20K's scene parsing set (ADEChallengeData2016).

``images/{training,validation}/*.jpg`` and, under the same names, ``annotations/{training,validation}/*.png`` with 0
for pixels that are not labelled and 1 to 150 for classes. In tensors classes begin with 0, and 255 is not labelled.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from upernet import Segmentor

from mtrkit.errors import InputError
from mtrkit.measure import preprocess_for, read_image

NOT_LABELLED = 255
_LONG = 4  # times the short side: a longer image is made smaller until its long side has no more


class Scenes:
    """The images of one part, read one at a time.

    Args:
        root: The data set's folder.
        part: ``"training"`` or ``"validation"``.
        num_classes: Classes; a pixel of another is an error.
        limit: At most so many, at even distances. Default: all.

    Raises:
        InputError: No images, or one without an annotation.
    """

    def __init__(self, root: Path, part: str, num_classes: int, limit: int | None = None) -> None:
        files = sorted((root / "images" / part).glob("*.jpg"))
        if not files:
            raise InputError(f"{root / 'images' / part} has no .jpg files; give the folder that holds images/{part}")
        if limit is not None and limit < len(files):
            files = [files[index * len(files) // limit] for index in range(limit)]
        self.images, self.num_classes = files, num_classes
        self.annotations = [root / "annotations" / part / f"{file.stem}.png" for file in files]
        absent = next((file for file in self.annotations if not file.is_file()), None)
        if absent is not None:
            raise InputError(f"{absent} is not there; every image needs an annotation of its name")

    @property
    def digest(self) -> str:
        """Changes whenever the files do, as far as their names and sizes tell."""
        listing = "\n".join(f"{file.name} {file.stat().st_size}" for file in (*self.images, *self.annotations))
        return hashlib.sha256(listing.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Pixels (3, H, W) from 0 to 255, and classes (H, W) int64."""
        pixels = torch.from_numpy(np.array(read_image(self.images[index]))).permute(2, 0, 1).float()
        labels = read_labels(self.annotations[index], self.num_classes)
        if labels.shape != pixels.shape[1:]:
            raise InputError(
                f"{self.annotations[index]} has {tuple(labels.shape)} pixels and its image {tuple(pixels.shape[1:])}; "
                "they must be of one size"
            )
        return pixels, labels


def read_labels(file: Path, num_classes: int) -> Tensor:
    """The classes (H, W) of an annotation, from 0, :data:`NOT_LABELLED` instead of its 0.

    Raises:
        InputError: Colours instead of numbers, or a number above ``num_classes``.
    """
    with Image.open(file) as image:
        if image.mode not in ("L", "P"):
            raise InputError(f"{file} has pixels of mode {image.mode}; expected one number per pixel, 8 bits (L or P)")
        numbers = np.asarray(image).astype(np.int64)
    if numbers.max() > num_classes:
        raise InputError(
            f"{file} has class {numbers.max()}; expected 1 to {num_classes}, and 0 for pixels that are not labelled"
        )
    return torch.from_numpy(np.where(numbers == 0, NOT_LABELLED, numbers - 1))


def scaled(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with a short side of so many pixels, or a long one of :data:`_LONG` times as many if less."""
    scale = min(_LONG * short / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) at another size, in whole grey levels, bilinear without smoothing, as OpenCV does it."""
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0].round()


class Normalise:
    """Pixels (3, H, W) from 0 to 255 to what a model takes, by the mean and deviation of values from 0 to 1."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = (torch.tensor(values)[:, None, None] * 255 for values in (mean, std))

    @classmethod
    def of(cls, model: Segmentor) -> "Normalise":
        """That of the backbone's weights."""
        found = preprocess_for(model.backbone.model.pretrained_cfg)
        return cls(found.mean, found.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std
