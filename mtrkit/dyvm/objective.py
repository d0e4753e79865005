"""The loss of DyVM as a trainer takes it: an objective of ``mtrkit.finetune.retrain``."""

from torch import Tensor, nn

from mtrkit.dyvm.loss import dyvm_loss
from mtrkit.dyvm.outputs import teacher_outputs
from mtrkit.dyvm.training import DyVMTraining
from mtrkit.errors import InputError


class DyVMObjective:
    """The loss of a batch of a :class:`DyVMTraining`.

    Args:
        teacher: A copy of the model from before training; it is frozen, put in eval mode and moved to the images.
            Default: no teacher.
        token_weight: Of the shares of patches that are kept.
        block_weight: Of the share of scans that run.
    """

    def __init__(
        self, teacher: nn.Module | None = None, *, token_weight: float = 10.0, block_weight: float = 10.0
    ) -> None:
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.token_weight, self.block_weight = token_weight, block_weight

    def __call__(self, model: nn.Module, bare: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, with its graph, and the logits (B, classes).

        Args:
            model: What is trained, inside of what spreads it over processes.
            bare: The :class:`DyVMTraining` inside.
            images: (B, 3, H, W), or clips.
            targets: Classes (B,), or their probabilities (B, classes).

        Raises:
            InputError: What is trained is not a :class:`DyVMTraining` in training mode.
        """
        lesson = None if self.teacher is None else teacher_outputs(self.teacher.to(images.device), images)
        logits = model(images)
        if not isinstance(bare, DyVMTraining) or bare.outputs is None:
            found = f"a {type(bare).__name__} in {'training' if bare.training else 'eval'} mode"
            raise InputError(f"DyVMObjective trains a DyVMTraining in training mode, not {found}")
        weights = {"token_weight": self.token_weight, "block_weight": self.block_weight}
        return dyvm_loss(bare.outputs, targets, lesson, **weights), logits
