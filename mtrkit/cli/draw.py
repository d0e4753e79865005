"""Draw which tokens of an image are kept, targets or sources at each reduction, and what is merged.

One row per image: what the model saw; per reduction the kept patches in red, the targets in blue, the sources
dark, and patches that had left before in white; and the tokens at the end, each group of merged patches
filled with its mean colour and outlined.
"""

import argparse
from pathlib import Path

import torch

from mtrkit.api import trace_reduction
from mtrkit.cli.console import say
from mtrkit.cli.evaluate import add_preprocessing, preprocess_from
from mtrkit.cli.loading import load_model, reduce_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.errors import InputError, OptionError
from mtrkit.measure import read_image
from mtrkit.vis import draw_reduction, patch_grid

EPILOG = """examples:
  mtrkit draw vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth cat.jpg dog.jpg
  mtrkit draw MODEL --checkpoint FILE photo.jpg --ratio 0.4 --out tokens.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, one reduction, and where to write."""
    add_model(parser, checkpoint="pretrained")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_reduction(parser, [0.3], many=False)
    add_preprocessing(parser)
    parser.add_argument("--out", type=Path, default=Path("mtrkit_draw.png"), help="default: mtrkit_draw.png")


def run(args: argparse.Namespace) -> int:
    """Read the images, run the model on them, and write one picture."""
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{args.out}: pictures are written as .png, .jpg or .webp; give one of these suffixes")
    if args.ratio == 0:
        raise OptionError("--ratio 0 reduces nothing, so there is nothing to draw; give a ratio above 0")
    model = load_model(args)
    preprocess = preprocess_from(args, model)
    seen = [preprocess.cut(read_image(path)) for path in args.images]
    reduce_model(model, args)
    with torch.inference_mode(), trace_reduction(model) as trace:
        predicted = model(torch.stack([preprocess.tensor(image) for image in seen])).argmax(dim=-1).tolist()
    captions = [
        f"{Path(path).name}, predicted class {number}" for path, number in zip(args.images, predicted, strict=True)
    ]
    title = f"{args.model}, {args.method.text} at ratio {args.ratio:g}"
    draw_reduction(seen, trace, patch_grid(model), captions, title).save(args.out)
    say(*captions, f"picture: {args.out}")
    return 0
