"""From what a user gives as data to labelled images or videos, and to what a model takes."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from mtrkit.adapters import find_host
from mtrkit.errors import InputError, OptionError, UnsupportedModelError
from mtrkit.measure.clips import Average, ClipPreprocess, open_clips
from mtrkit.measure.images import OWN_IMAGES, ImageSet, bundled_set, image_folder
from mtrkit.measure.kinds import FOR_IMAGES
from mtrkit.measure.preprocess import Preprocess, preprocess_for
from mtrkit.measure.shards import image_shards, is_shards


def open_images(source: str | Path) -> ImageSet:
    """The images of a folder per class or of WebDataset shards, or the bundled ones for ``"bundled"``.

    Args:
        source: A folder with a folder per class; a folder of ``.tar`` files, one such file, or a pattern such as
            ``train-{0000..0063}.tar``; or ``"bundled"``.

    Raises:
        InputError: No images were found, or the shards are damaged.
    """
    if str(source) == OWN_IMAGES:
        return bundled_set()
    return image_shards(source) if is_shards(source) else image_folder(source)


def open_data(source: str | Path, model: nn.Module) -> ImageSet:
    """What the model takes: :func:`open_images`, or :func:`open_clips` for a model of clips.

    Raises:
        InputError: No such data were found, or they are of the other kind.
    """
    if not takes_clips(model):
        return open_images(source)
    if str(source) == OWN_IMAGES:
        raise InputError(f"the bundled data are images, and the model takes clips; {FOR_IMAGES}")
    return open_clips(source)


def takes_clips(model: nn.Module) -> bool:
    """Whether a model's input is (B, C, T, H, W)."""
    return len(input_size_of(model)) == 4


def preprocess_of(
    model: nn.Module, *, segments: int = 1, crops: int = 1, average: Average = "logits", **given: Any
) -> Preprocess:
    """A model's own preprocessing, at the size that it was built for.

    Args:
        model: Its ``pretrained_cfg`` says the rest; clips without one are cut out at the full shorter side.
        segments: Of a video, for a model of clips.
        crops: The same.
        average: The same.
        **given: What :func:`preprocess_for` takes and counts more than the model's own.

    Raises:
        OptionError: Several segments or crops for a model of images.
    """
    _, *frames, height, width = input_size_of(model)
    config = getattr(model, "pretrained_cfg", None) or getattr(find_host(model)[0], "pretrained_cfg", {})
    if not frames:
        if segments * crops > 1:
            raise OptionError(f"{segments} segments × {crops} crops are for models of clips; this one takes images")
        return preprocess_for(config, size=(height, width), **given)
    plain = preprocess_for({"crop_pct": 1.0} | config, size=(height, width), **given)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return ClipPreprocess(**fields, frames=frames[0], segments=segments, crops=crops, average=average)


def input_size_of(model: nn.Module) -> tuple[int, ...]:
    """Channels, frames of a clip, height and width that a model, or the one inside of it, was built for.

    A model of no family that mtrkit knows, such as a convolutional one of timm, says it in its ``pretrained_cfg``.
    """
    try:
        host, adapter = find_host(model)
    except UnsupportedModelError:
        config = getattr(model, "pretrained_cfg", None) or {}
        if "input_size" not in config:
            raise
        return tuple(config["input_size"])
    return adapter.input_size(host)
