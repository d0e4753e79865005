"""What a re-training makes small."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrkit.api import reduction_disabled
from mtrkit.dyvm.loss import divergence
from mtrkit.finetune.modes import evaluating
from mtrkit.finetune.recipe import Recipe
from mtrkit.models import load_checkpoint


class Objective(Protocol):
    """The loss of a batch."""

    def __call__(self, model: nn.Module, bare: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, with its graph, and the logits (B, classes).

        Args:
            model: What is trained, inside of what spreads it over processes.
            bare: The same model without that.
            images: (B, 3, H, W), or clips.
            targets: (B, classes), how much of each class an image is.
        """
        ...


class CrossEntropy:
    """Cross-entropy, and if asked the divergence from a teacher's answers.

    R-MeeTo's paper trains by the first alone. Its scripts add the second at a weight of 0.5.

    Args:
        recipe: Its ``distill`` is the weight of the divergence.
        teacher: Another model from images to logits; it is frozen, and its reduction does not count. Default: the
            model itself as it is in training, with its reduction disabled and in eval mode: one model in memory.
    """

    def __init__(self, recipe: Recipe, teacher: nn.Module | None = None) -> None:
        self.distill = recipe.distill
        self.teacher = None if teacher is None else teacher.requires_grad_(False)

    @classmethod
    def for_model(cls, model: nn.Module, recipe: Recipe) -> "CrossEntropy":
        """As the recipe says, for a model that is not trained yet."""
        if not recipe.distill or recipe.teacher == "itself":
            return cls(recipe)
        teacher = copy.deepcopy(model)
        if recipe.teacher != "before":
            load_checkpoint(teacher, recipe.teacher)
        return cls(recipe, teacher)

    def __call__(self, model: nn.Module, bare: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        teacher = bare if self.teacher is None else self.teacher.to(images.device)
        lesson = _dense_answers(teacher, images) if self.distill else None
        logits = model(images).float()
        loss = F.cross_entropy(logits, targets)
        if lesson is not None:
            loss = loss + self.distill * divergence(logits, lesson)
        return loss, logits


@torch.no_grad()
def _dense_answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) without reduction, dropout and drop path."""
    with evaluating(model), reduction_disabled(model):
        answers: Tensor = model(images)
    # Some versions of torch keep the weights that autocast has converted here, through which no gradient flows.
    torch.clear_autocast_cache()
    return answers
