"""What a re-training makes small."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtrkit.api import reduction_disabled
from mtrkit.dyvm.loss import divergence
from mtrkit.finetune.recipe import Recipe


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
    """Cross-entropy, and if asked the divergence from what the same weights answer dense.

    R-MeeTo's paper trains by the first alone. Its scripts add the second at a weight of 0.5, with a copy of the dense
    model as the teacher. Here the teacher is the model itself with its reduction disabled, in eval mode: one model in
    memory.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.distill = recipe.distill

    def __call__(self, model: nn.Module, bare: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Objective`."""
        lesson = _dense_answers(bare, images) if self.distill else None
        logits = model(images).float()
        loss = F.cross_entropy(logits, targets)
        if lesson is not None:
            loss = loss + self.distill * divergence(logits, lesson)
        return loss, logits


@torch.no_grad()
def _dense_answers(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) without reduction, dropout and drop path."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with reduction_disabled(model):
            answers: Tensor = model(images)
            return answers
    finally:
        for module, training in modes:  # not train(): what was left in eval mode stays there
            module.training = training
