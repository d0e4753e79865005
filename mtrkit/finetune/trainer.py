"""Re-train a model: what users call."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DynamoBackend
from timm.data import create_transform
from torch import nn

from mtrkit.errors import InputError, OptionError
from mtrkit.finetune.clips import AugmentClip
from mtrkit.finetune.draws import Draws
from mtrkit.finetune.drive import accelerator_for
from mtrkit.finetune.folder import RunFolder
from mtrkit.finetune.modes import evaluating
from mtrkit.finetune.objective import CrossEntropy, Objective
from mtrkit.finetune.recipe import Recipe
from mtrkit.finetune.result import Result
from mtrkit.finetune.run import Run
from mtrkit.measure import ClipPreprocess, ImageSet, Preprocess, check_classes, input_size_of, preprocess_of
from mtrkit.patch import trained_parts


def retrain(
    model: nn.Module,
    images: ImageSet,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    held_out: ImageSet | None = None,
    preprocess: Preprocess | None = None,
    objective: Objective | None = None,
    save_every: int = 100,
    workers: int = 2,
    skip_unreadable: bool = False,
    tensorboard: bool = False,
    show_progress: bool = True,
    accelerator: Accelerator | None = None,
) -> Result:
    """Train a model as it is, reduced or not, and go on with a run that was interrupted.

    The same call with the same folder goes on from its last checkpoint. Under ``accelerate launch`` or ``torchrun``
    every process makes the call, and together they do what one would.

    Args:
        model: From images to logits; its ``pretrained_cfg`` says size and normalisation. Trained in place.
        images: To train on; for a model of clips what :func:`mtrkit.measure.open_clips` returns.
        out: The run's folder: ``run.json``, ``log.csv``, ``log.svg``, checkpoints, ``model.safetensors``.
        recipe: Default: R-MeeTo's.
        held_out: Images on which the accuracy is measured after every epoch; not trained on.
        preprocess: How the held-out images are prepared, or at how many views of videos the model looks. Default: its
            own, one view.
        objective: Default: :class:`~mtrkit.finetune.CrossEntropy` as the recipe says; another one brings its own
            teacher, if any.
        save_every: Steps between checkpoints.
        workers: Processes that read images, for each process that trains; 0: none.
        skip_unreadable: Take the next image instead of one that cannot be read; default: stop and name it.
        tensorboard: Write for TensorBoard too.
        show_progress: Show a progress bar if a terminal is there.
        accelerator: Default: one for the recipe's precision.

    Raises:
        InputError: The images or the folder do not fit, or an image cannot be read.
        OptionError: The accelerator is for another precision, accumulates by itself, or spreads by FSDP what it cannot.
        CheckpointError: A checkpoint cannot be written or read, or the loss is not a number any more; the last good
            checkpoint is kept.
    """
    recipe = recipe or Recipe()
    accelerator = accelerator or accelerator_for(recipe)
    check_images(model, images)
    if held_out is not None and held_out.classes != images.classes[: len(held_out.classes)]:
        raise InputError(
            f"the classes of the held-out images ({held_out.name}) are not those of {images.name}; labels are numbered "
            "by sorted folder name, so both need the same folders (an empty one will do)"
        )
    _check_accelerator(accelerator, recipe)
    if accelerator.distributed_type is DistributedType.FSDP:
        _check_sharded(model, accelerator)
    draws = Draws(images, augmentation(model, recipe), recipe, skip_unreadable)
    objective, preprocess = objective or CrossEntropy.for_model(model, recipe), preprocess or preprocess_of(model)
    run = Run(model, draws, RunFolder(out), recipe, objective, accelerator, preprocess)
    run.begin({"held_out": None if held_out is None else held_out.digest})
    return run.through(held_out, save_every, workers, tensorboard, show_progress)


def _check_accelerator(accelerator: Accelerator, recipe: Recipe) -> None:
    """Raise :class:`OptionError` if it would train otherwise than the recipe says."""
    if accelerator.mixed_precision != recipe.precision:
        raise OptionError(
            f"the accelerator has mixed_precision={accelerator.mixed_precision!r} and the recipe "
            f"precision={recipe.precision!r}; make both the same"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise OptionError(
            f"the accelerator has gradient_accumulation_steps={accelerator.gradient_accumulation_steps}; leave that "
            "out and give the recipe accumulate=…"
        )


def _check_sharded(model: nn.Module, accelerator: Accelerator) -> None:
    """Raise :class:`OptionError` if FSDP would spread what has to be whole."""
    if trained_parts(model) is not None:
        raise OptionError("FSDP cannot spread what DyVM has beside a model; train it under DDP, or on one process")
    if accelerator.state.dynamo_plugin.backend is not DynamoBackend.NO:
        raise OptionError("a model that is compiled and spread by FSDP cannot be evaluated; leave --dynamo_backend out")


def check_images(model: nn.Module, images: ImageSet) -> None:
    """Raise :class:`InputError` unless every class of the images has some and the model has these classes."""
    check_classes(_outputs(model), images)
    beyond = [label for label in images.labels if not 0 <= label < len(images.classes)]
    if beyond:
        raise InputError(f"label {beyond[0]} is not one of the {len(images.classes)} classes of {images.name}")
    present = set(images.labels)
    empty = [name for label, name in enumerate(images.classes) if label not in present]
    if empty:
        raise InputError(f"class {empty[0]!r} of {images.name} has no images; add some, or train on another folder")


@torch.no_grad()
def _outputs(model: nn.Module) -> int:
    """How many classes the logits are for."""
    weight = next(model.parameters())
    with evaluating(model):
        return int(model(weight.new_zeros(1, *input_size_of(model))).shape[-1])


def augmentation(model: nn.Module, recipe: Recipe) -> Any:
    """timm's augmentation of one image, at the model's size and normalisation; of a video, of every frame alike."""
    preprocess = preprocess_of(model)
    transform = create_transform(
        (3, *preprocess.size),
        is_training=True,
        scale=(recipe.crop_scale, 1.0),
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment,
        interpolation="bicubic",
        re_prob=recipe.erase,
        re_mode="pixel",
        mean=preprocess.mean,
        std=preprocess.std,
    )
    return AugmentClip(transform, preprocess.frames) if isinstance(preprocess, ClipPreprocess) else transform
