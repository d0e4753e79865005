"""Draw which tokens of an image are kept, targets or sources at each reduction, and what is merged.

One row per image: what the model saw; per reduction the kept patches in red, the targets in blue, the sources
dark, and patches that had left before in white; and the tokens at the end, each group of merged patches
filled with its mean colour and outlined. With several methods they stand side by side, a row per reduction; so they
do for clips, each the strip of its frames.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from mtrkit.api import trace_reduction
from mtrkit.cli.console import Output
from mtrkit.cli.files import PICTURES, check_target, save_picture
from mtrkit.cli.inputs import add_preprocessing, read_input
from mtrkit.cli.loading import load_model, reduce_model
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.cli.predictions import RANDOM_NOTE, Prediction, predictions
from mtrkit.errors import OptionError
from mtrkit.patch import Trace
from mtrkit.vis import draw_methods, draw_reduction, patch_grid

EPILOG = """examples:
  mtrkit draw vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth cat.jpg dog.jpg
  mtrkit draw MODEL --checkpoint FILE photo.jpg --ratio 0.4 --out tokens.png
  mtrkit draw MODEL --checkpoint FILE photo.jpg --method evit pumer utr hsa mtr --out methods.png
  mtrkit draw videomamba_tiny_patch16_224_f8 --checkpoint FILE clip.mp4 --method rmeeto --layers even --r 88
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, one reduction, and where to write."""
    add_model(parser, "pretrained")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files; video files for a model of clips")
    add_reduction(parser, [0.3], many=False)
    add_preprocessing(parser)
    parser.add_argument("--out", type=Path, default=Path("mtrkit_draw.png"), help="default: mtrkit_draw.png")


def run(args: argparse.Namespace) -> int:
    """Read the images, run the model on them, and write one picture."""
    check_target(args.out, PICTURES, "pictures")
    if args.ratio == 0:
        raise OptionError("--ratio 0 reduces nothing, so there is nothing to draw; give a ratio above 0")
    model = load_model(args)
    seen, inputs = zip(*(read_input(path, args, model) for path in args.images), strict=True)
    batch = torch.stack(inputs)
    grid, names = patch_grid(model), [Path(path).name for path in args.images]
    traces: dict[str, Trace] = {}
    predicted: dict[str, list[Prediction]] = {}
    for method in args.method:
        reduce_model(model, method, args)
        with torch.inference_mode(), trace_reduction(model) as traces[method.text]:
            predicted[method.text] = predictions(model(batch), args, model)
    captions = {text: _captions(names, classes) for text, classes in predicted.items()}
    if len(traces) == 1 and batch.dim() == 4:
        text, trace = traces.popitem()
        title = f"{args.model}, {text} at {_amount(args)}"
        save_picture(draw_reduction(seen, trace, grid, captions[text], title), args.out)
    else:
        save_picture(draw_methods(seen, traces, grid, names, f"{args.model} at {_amount(args)}"), args.out)
    out = Output(args.json)
    out.say(*(f"{text}: {line}" for text, lines in captions.items() for line in lines))
    out.say(*([RANDOM_NOTE] if args.checkpoint is None else []), f"picture: {args.out}")
    rows = [_row(text, *found) for text, every in predicted.items() for found in zip(args.images, every, strict=True)]
    out.document({"model": args.model, "picture": args.out, "rows": rows})
    return 0


def _row(method: str, file: str, prediction: Prediction) -> dict[str, Any]:
    return {"method": method, "file": file, "prediction": prediction}


def _captions(names: list[str], found: list[Prediction]) -> list[str]:
    random = ", random weights" if found[0].random else ""
    return [f"{name}, predicted {prediction}{random}" for name, prediction in zip(names, found, strict=True)]


def _amount(args: argparse.Namespace) -> str:
    return f"ratio {args.ratio:g}" if args.r is None else f"r={args.r}"
