"""Clips to train on: other frames of a video in every draw, and all of them augmented alike."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mtrkit.finetune.chance import seeded
from mtrkit.measure import read_frames


class AugmentClip:
    """From a video to a clip (3, T, H, W).

    The video is cut into T equal parts, of which each gives a frame by chance (sparse sampling, as VideoMamba trains);
    crop, flip and all else that is random is then the same for every frame.

    Args:
        transform: Of one frame; what is random in it has to follow Python's, numpy's and torch's random states.
        frames: T.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], frames: int) -> None:
        self.transform, self.frames = transform, frames

    def __call__(self, path: Path) -> Tensor:
        """A clip of the video in this file, as the random states have it."""
        found = read_frames(path, self._choose)
        seed = random.getrandbits(63)
        augmented = []
        for frame in found:
            with seeded(seed):
                augmented.append(self.transform(frame))
        return torch.stack(augmented, dim=1)

    def _choose(self, total: int) -> list[int]:
        part = (total - 1) / self.frames
        return [random.randint(round(part * i), round(part * (i + 1))) for i in range(self.frames)]
