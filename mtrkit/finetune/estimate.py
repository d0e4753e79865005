"""What a run would be and take, before it is begun."""

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from mtrkit.api import count_flops, reduction_info
from mtrkit.finetune.draws import Draws, check_cut
from mtrkit.finetune.drive import accelerator_for
from mtrkit.finetune.objective import CrossEntropy, Objective
from mtrkit.finetune.recipe import Recipe
from mtrkit.finetune.trainer import augmentation, check_images
from mtrkit.measure import ImageSet, input_size_of, peak_memory, twin

_TRIALS = 3


@dataclass(frozen=True)
class Estimate:
    """What a run would take on this machine.

    Attributes:
        images: Of which the run draws.
        steps: Of the optimiser.
        processes: That train together.
        passes: Forward and backward passes per step and process, each over ``per_pass`` images.
        per_pass: Images.
        tokens: That enter each block of the model, or ``None`` for one that is not reduced.
        gflops: Of one forward pass of one image.
        bytes: The peak of a pass with weights and gradients, the optimiser's state, and the average and the teacher if
            there are any, per process.
        minutes: From passes that were timed; reading images is not in it.
    """

    images: int
    steps: int
    processes: int
    passes: int
    per_pass: int
    tokens: tuple[int, ...] | None
    gflops: float
    bytes: int
    minutes: float

    def __str__(self) -> str:
        tokens = "not reduced" if self.tokens is None else "tokens " + ", ".join(map(str, self.tokens))
        return (
            f"{self.images} images, {self.steps} steps\n"
            f"per step: {self.processes} processes × {self.passes} passes × {self.per_pass} images\n"
            f"model: {tokens}; {self.gflops:.3f} GFLOPs per image forward\n"
            f"memory: {self.bytes / 2**20:.0f} MiB per process\n"
            f"expected: {self.minutes:.1f} minutes"
        )


def estimate(
    model: nn.Module,
    images: ImageSet,
    recipe: Recipe,
    *,
    objective: Objective | None = None,
    accelerator: Accelerator | None = None,
) -> Estimate:
    """Time a few passes of a run without changing the model, and count the rest.

    Raises:
        InputError: The images do not fit the model or the recipe.
    """
    accelerator = accelerator or accelerator_for(recipe)
    check_images(model, images)
    draws, info = Draws(images, augmentation(model, recipe), recipe), reduction_info(model)
    parts = check_cut(recipe, accelerator.num_processes)
    per_pass = recipe.batch_size // parts
    objective = objective or CrossEntropy.for_model(model, recipe)
    seconds, memory = _time_a_pass(model, objective, per_pass, len(images.classes), accelerator)
    steps = max(1, round(recipe.epochs * draws.steps_per_epoch))
    return Estimate(
        images=len(draws.used),
        steps=steps,
        processes=accelerator.num_processes,
        passes=recipe.accumulate,
        per_pass=per_pass,
        tokens=None if info is None else (info.num_tokens, *info.tokens[:-1]),
        gflops=(count_flops(model) if info is None else info.flops_reduced).gflops,
        bytes=memory + _weights(model) * (2 + (recipe.accumulate > 1) + (recipe.ema is not None)),
        minutes=steps * recipe.accumulate * seconds / 60,
    )


def _time_a_pass(
    model: nn.Module, objective: Objective, per_pass: int, classes: int, accelerator: Accelerator
) -> tuple[float, int]:
    """Seconds of a forward and backward pass, and the most memory that it takes, weights and gradients included."""
    device, size = accelerator.device, input_size_of(model)
    moves = next(model.parameters()).device != device  # a twin's weights are the model's, and would move them too
    trial = (copy.deepcopy(model) if moves else twin(model, own_buffers=True)).to(device).train()
    images = torch.randn(per_pass, *size, device=device)
    targets = torch.full((per_pass, classes), 1 / classes, device=device)
    parameters = [parameter for parameter in trial.parameters() if parameter.requires_grad]

    def run() -> None:
        with accelerator.autocast():
            loss, _ = objective(trial, trial, images, targets)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        next(gradient for gradient in found if gradient is not None).sum().item()  # waits for the device

    taken = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    teacher = getattr(objective, "teacher", None)
    held = _weights(trial) + (0 if teacher is None else _weights(teacher))
    return statistics.median(taken), peak_memory(run, device, held) or 0


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
