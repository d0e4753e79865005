"""From a model for square windows to a score on images of any size: sliding windows, counts of pixels, mIoU."""

from typing import NamedTuple

import torch.nn.functional as F
from scenes import NOT_LABELLED
from torch import Tensor, nn

from mtrkit.errors import InputError


def slide(model: nn.Module, image: Tensor, size: int) -> Tensor:
    """Logits (1, classes, H, W) of an image (1, 3, H, W) of any size, averaged over windows."""
    total: Tensor | None = None
    height, width = image.shape[-2:]
    seen = image.new_zeros(height, width)
    for top in starts(height, size):
        for left in starts(width, size):
            place = (..., slice(top, top + size), slice(left, left + size))
            window = image[place]
            rows, columns = window.shape[-2:]
            logits = model(F.pad(window, (0, size - columns, 0, size - rows)))[..., :rows, :columns]
            total = logits.new_zeros(1, logits.shape[1], height, width) if total is None else total
            total[place] += logits
            seen[place] += 1
    return total / seen


def starts(side: int, size: int) -> list[int]:
    """Where windows begin: two thirds of their size apart, the last one at the edge."""
    last = max(side - size, 0)
    return [*range(0, last, size * 2 // 3), last]


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How many labelled pixels of each class (rows) were taken for each class (columns): int64."""
    seen = labels != NOT_LABELLED
    return (labels[seen] * num_classes + predicted[seen]).bincount(minlength=num_classes**2).view(num_classes, -1)


class Score(NamedTuple):
    """What a confusion matrix says."""

    iou: list[float | None]  # per class, None if neither labels nor predictions have it
    miou: float  # the mean of the others
    pixel_accuracy: float
    pixels: int  # that are labelled

    @classmethod
    def of(cls, counts: Tensor) -> "Score":
        """From (classes, classes) int64."""
        right, pixels = counts.diag(), int(counts.sum())
        if not pixels:
            raise InputError("no pixel of the validation images is labelled; there is nothing to measure on")
        union = counts.sum(0) + counts.sum(1) - right
        iou = [int(r) / int(u) if u else None for r, u in zip(right, union, strict=True)]
        there = [value for value in iou if value is not None]
        return cls(iou, sum(there) / len(there), int(right.sum()) / pixels, pixels)
