"""From image and video files to what a model takes."""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mtrkit.cli.loading import input_shape
from mtrkit.measure import INTERPOLATIONS, Preprocess, preprocess_for, read_clip, read_image
from mtrkit.vis import strip


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """--mean, --std, --crop and --interpolation; each default is the model's own."""
    parser.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="of values in [0, 1]")
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"))
    parser.add_argument("--crop", type=float, help="share of the resized image that is used, in (0, 1]")
    parser.add_argument("--interpolation", choices=list(INTERPOLATIONS))


def add_input(parser: argparse.ArgumentParser, use: str) -> None:
    """--input, for what ``use`` says, and how it is prepared."""
    parser.add_argument("--input", metavar="FILE", help=f"image, or video for a model of clips: {use}")
    add_preprocessing(parser)


def preprocess_from(args: argparse.Namespace, model: nn.Module) -> Preprocess:
    """The model's own preprocessing, with what the arguments change."""
    *_, height, width = input_shape(model)
    return preprocess_for(
        getattr(model, "pretrained_cfg", {}),
        size=(height, width),
        mean=args.mean and tuple(args.mean),
        std=args.std and tuple(args.std),
        crop=args.crop,
        interpolation=args.interpolation,
    )


def read_input(path: str | Path, args: argparse.Namespace, model: nn.Module) -> tuple[Image.Image, Tensor]:
    """What the model sees of a file: as a picture, a clip as the strip of its frames, and as its input."""
    preprocess, size = preprocess_from(args, model), input_shape(model)
    if len(size) == 3:
        image = preprocess.cut(read_image(path))
        return image, preprocess.tensor(image)
    frames = [preprocess.cut(frame) for frame in read_clip(path, size[1])]
    return strip(frames), torch.stack([preprocess.tensor(frame) for frame in frames], dim=1)
