"""Which images a step sees, and how they are augmented: a function of the seed and of the step alone.

So a run that goes on after an interruption sees what it would have seen, whatever the number of workers, and several
processes together see what one would.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtrkit.errors import InputError
from mtrkit.finetune.chance import seeded
from mtrkit.finetune.recipe import Recipe
from mtrkit.measure import ImageSet

Augment = Callable[[Any], Tensor]  # of an image, or of a video's path


class Draws(Dataset[tuple[Tensor, int, int]]):
    """The sequence of augmented images that a run draws, by their number from 0 on.

    An item is an image (3, H, W) or a clip (3, T, H, W), its label, and how many images were unreadable and passed over
    to get it.
    """

    def __init__(self, images: ImageSet, augment: Augment, recipe: Recipe, skip_unreadable: bool = False) -> None:
        self.images, self.augment, self.recipe = images, augment, recipe
        self.skip_unreadable = skip_unreadable
        chosen = _permutation(len(images), recipe.seed, -1)[: max(1, round(recipe.fraction * len(images)))]
        self.used = torch.sort(chosen).values
        self.steps_per_epoch = len(self.used) // recipe.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"{len(self.used)} images are fewer than one batch of {recipe.batch_size}; give more images, a larger "
                "fraction, or a smaller batch_size"
            )

    def __len__(self) -> int:
        return self.steps_per_epoch * self.recipe.batch_size

    def __getitem__(self, draw: int) -> tuple[Tensor, int, int]:
        """Draw ``draw`` of the run."""
        per_epoch = len(self)
        epoch, place = divmod(draw, per_epoch)
        order = _permutation(len(self.used), self.recipe.seed, epoch)
        place //= self.recipe.repeats
        for skipped in range(len(order)):
            index = int(self.used[order[(place + skipped) % len(order)]])
            try:
                with seeded(self.recipe.seed, draw):
                    return self.augment(self.images.openers[index]()), self.images.labels[index], skipped
            except InputError:
                if not self.skip_unreadable:
                    raise
        raise InputError(f"none of the images of {self.images.name} can be read")

    def batch(self, step: int, part: int, parts: int) -> list[int]:
        """The draws of one of the ``parts`` that a step's batch is cut into.

        Each part is the mirror image of itself in the whole batch, so that mixing an image with its mirror image, as
        timm does, mixes the same pairs however the batch is cut.
        """
        size = self.recipe.batch_size
        first, half = step * size, size // (2 * parts)
        if parts == 1:
            return list(range(first, first + size))
        front = range(part * half, (part + 1) * half)
        return [first + i for i in front] + [first + size - 1 - i for i in reversed(front)]


class BatchPlan:
    """The batches of draws of one process, from one step to another, for a ``DataLoader``."""

    def __init__(self, draws: Draws, steps: range, parts: range, cut: int) -> None:
        self.draws, self.steps, self.parts, self.cut = draws, steps, parts, cut

    def __iter__(self) -> Iterator[list[int]]:
        return (self.draws.batch(step, part, self.cut) for step in self.steps for part in self.parts)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


def check_cut(recipe: Recipe, processes: int) -> int:
    """How many parts a batch is cut into, by processes and by accumulation.

    Raises:
        InputError: The batch cannot be cut so.
    """
    parts = processes * recipe.accumulate
    if recipe.batch_size % (2 * parts) and (parts > 1 or recipe.mixes):
        raise InputError(
            f"a batch of {recipe.batch_size} cannot be cut into {processes} processes × {recipe.accumulate} passes of "
            f"an even number of images; make batch_size a multiple of {2 * parts}"
        )
    return parts


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    words = np.random.SeedSequence([seed, epoch + 1]).generate_state(1)
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(words[0])))
