"""From image and video files to what a model takes."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from mtrkit.cli.parsing import positive
from mtrkit.data import bundled_images
from mtrkit.errors import InputError
from mtrkit.measure import INTERPOLATIONS, Preprocess, input_size_of, preprocess_of, read_image, read_timed_clip
from mtrkit.measure.images import OWN_IMAGES
from mtrkit.measure.kinds import FOR_IMAGES, image_for_clips, video_for_images


class Seen(NamedTuple):
    """What a model sees of a file."""

    frames: list[Image.Image]  # of an image, one
    tensor: Tensor  # (C, H, W), or (C, T, H, W) of a clip
    times: list[float] | None  # of the frames of a clip, in seconds, if the file says them


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """--mean, --std, --crop and --interpolation; each default is the model's own."""
    parser.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="of values in [0, 1]")
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"))
    parser.add_argument("--crop", type=float, help="share of the resized image that is used, in (0, 1]")
    parser.add_argument("--interpolation", choices=list(INTERPOLATIONS))


def check_kind(path: str | Path, clips: bool) -> None:
    """Raise :class:`InputError` if a file is a video and the model takes no clips, or the other way round."""
    wrong = image_for_clips(path) if clips else video_for_images(path)
    if wrong:
        raise InputError(wrong)


def add_input(parser: argparse.ArgumentParser, use: str) -> None:
    """--input, for what ``use`` says, and how it is prepared."""
    what = "image, bundled:7 for one that comes with mtrkit, or video for a model of clips"
    parser.add_argument("--input", metavar="FILE", help=f"{what}: {use}")
    add_preprocessing(parser)


def add_views(parser: argparse.ArgumentParser) -> None:
    """--segments, --crops and --average, for models of clips."""
    group = parser.add_argument_group("videos", "for models of clips; Kinetics is tested with 4 segments and 3 crops")
    group.add_argument("--segments", type=positive, default=1, help="clips per video (default: 1)")
    group.add_argument(
        "--crops", type=positive, default=1, help="places along the longer side (default: 1, the centre)"
    )
    group.add_argument(
        "--average",
        choices=["logits", "probabilities"],
        default="logits",
        help="of the views of a video; VideoMamba's own scripts take probabilities (default: logits)",
    )


def preprocess_from(args: argparse.Namespace, model: nn.Module) -> Preprocess:
    """The model's own preprocessing, with what the arguments change, as far as the command has them."""
    given = vars(args)
    return preprocess_of(
        model,
        mean=given.get("mean") and tuple(args.mean),
        std=given.get("std") and tuple(args.std),
        crop=given.get("crop"),
        interpolation=given.get("interpolation"),
        segments=given.get("segments", 1),
        crops=given.get("crops", 1),
        average=given.get("average", "logits"),
    )


def read_input(path: str | Path, args: argparse.Namespace, model: nn.Module) -> Seen:
    """Read a file, or an image that comes with the package, for which ``bundled:7`` stands."""
    preprocess, size = preprocess_from(args, model), input_size_of(model)
    if len(size) == 3:
        image = preprocess.cut(_bundled(path) if is_bundled(path) else read_image(path))
        return Seen([image], preprocess.tensor(image), None)
    if is_bundled(path):
        raise InputError(f"{path} is an image, and the model takes clips; {FOR_IMAGES}")
    found = read_timed_clip(path, size[1])
    frames = [preprocess.cut(frame) for frame, _ in found]
    times = [time for _, time in found if time is not None]
    tensor = torch.stack([preprocess.tensor(frame) for frame in frames], dim=1)
    return Seen(frames, tensor, times if len(times) == len(frames) else None)


def is_bundled(path: str | Path) -> bool:
    """Whether ``bundled:7`` or another number stands for an image that comes with the package."""
    return str(path).startswith(f"{OWN_IMAGES}:")


def name_of(path: str | Path) -> str:
    """What to call an input: the name of its file, or the number and class of a bundled image."""
    if not is_bundled(path):
        return Path(path).name
    number = _number(path)
    _, labels, classes = bundled_images()
    return f"bundled image {number} ({classes[labels[number]]})"


def _bundled(path: str | Path) -> Image.Image:
    return Image.fromarray(bundled_images().images[_number(path)])


def _number(path: str | Path) -> int:
    number, count = str(path).partition(":")[2], len(bundled_images().labels)
    if not number.isdecimal() or int(number) >= count:
        raise InputError(
            f"{path} names no image that comes with mtrkit; give {OWN_IMAGES}:0 to {OWN_IMAGES}:{count - 1}"
        )
    return int(number)
