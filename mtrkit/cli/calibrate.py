"""Fit a reduction to a model by its own answers on a few hundred training images; labels are not used.

Writes a file of some kB for `mtrkit.apply_reduction(model, calibration=FILE)` and for --calibration of other commands.
The images should be of the kind that the model will see, and none of those that it is tested on.

Several processes share the passes if `torchrun` or `accelerate launch` starts the command. Batches are dealt out to
them, so a smaller --batch-size leaves fewer of them idle; each reads all images. The file is that of one process, to
the bit if the machines are alike and each process has as many threads.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from mtrkit.calibration import calibrate
from mtrkit.cli.console import Output
from mtrkit.cli.files import check_target
from mtrkit.cli.inputs import add_preprocessing, preprocess_from
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_data, add_model, add_reduction, add_running, options_of, ratios, resolve_running
from mtrkit.cli.parsing import positive, whole
from mtrkit.errors import OptionError
from mtrkit.measure import ImageSet, Precision, batches, open_data, takes_clips
from mtrkit.measure.processes import Processes, joined
from mtrkit.patch import Calibration

EPILOG = """examples:
  mtrkit calibrate vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/train --ratio 0.3 --out r30.safetensors
  mtrkit eval vim_tiny_patch16_224 --checkpoint vim_t.pth --data imagenet/val --calibration r30.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images, the reduction, and where to write."""
    add_model(parser, "pretrained")
    add_data(parser)
    parser.add_argument("--limit", type=positive, default=500, help="images used, at even distances (default: 500)")
    parser.add_argument("--seed", type=whole, default=0, help="of the order of the images (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    add_reduction(parser, [0.3], many=False, many_methods=False, default="runs", removals=False)
    add_preprocessing(parser)
    parser.add_argument("--batch-size", type=positive, default=32, help="default: 32")
    add_running(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, save and describe."""
    with joined(args.device) as processes:
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    check_target(args.out, (".safetensors",), "calibrations")
    ratio = ratios(args)[0]
    if not 0 < ratio < 1:
        raise OptionError(f"--ratio is the share of FLOPs to remove, above 0 and below 1, not {ratio:g}")
    device, precision = resolve_running(args), Precision(args.dtype)
    model = precision.cast(load_model(args, device))
    images = open_data(args.data, model).spread(args.limit)
    inputs = torch.cat(list(batches(images, preprocess_from(args, model), args.batch_size)))
    with precision.context(device):
        found = calibrate(
            model,
            inputs,
            ratio,
            method=args.method.name,
            batch_size=args.batch_size,
            seed=args.seed,
            processes=processes,
            **options_of(args, args.method),
        )
    if processes.main:
        found.save(args.out)
        _tell(Output(args.json), args, found, model, images)
    return 0


def _tell(out: Output, args: argparse.Namespace, found: Calibration, model: nn.Module, images: ImageSet) -> None:
    what = "videos" if takes_clips(model) else "images"
    out.say(f"{args.model}, {len(images)} {what} from {images.name}", *str(found).splitlines(), f"saved: {args.out}")
    out.document(
        {
            "model": args.model,
            "out": args.out,
            "method": found.method,
            "options": found.options,
            "input_size": found.input_size,
            "ratio": found.ratio,
            "num_tokens": found.num_tokens,
            "tokens": found.tokens,
            "layers": found.layers,
            "corrected": found.correction is not None,
            "divergence": found.divergence,
            "num_samples": found.num_samples,
        }
    )
