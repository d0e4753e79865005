"""Images and labels as a loss takes them: mixed in pairs, if the recipe says so, with targets over all classes."""

from collections.abc import Callable

from timm.data import Mixup
from torch import Tensor
from torch.nn import functional as F

from mtrkit.finetune.recipe import Recipe

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (B, ...) and labels (B,) to images and targets (B, classes)."""


def mixing(recipe: Recipe, classes: int) -> Mix:
    """What the recipe does to a batch."""
    if recipe.mixes:
        mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )

        def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            """timm's, which takes the last two of four dimensions for height and width: frames are as channels."""
            flat, targets = mixup(images.flatten(1, -3), labels)
            return flat.view_as(images), targets

        return mix

    def smooth(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        sharp = F.one_hot(labels, classes).float()
        return images, sharp * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes

    return smooth
