"""Write a model, dense or reduced, as a file that runs without mtrkit: ONNX, or a program of torch.

The file is run and compared with the model on real images before it takes its place.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrkit.cli.console import Output
from mtrkit.cli.files import check_target
from mtrkit.cli.inputs import add_input, preprocess_from, read_input
from mtrkit.cli.loading import count_parameters, load_model, reduce_if_asked
from mtrkit.cli.options import add_model, add_reduction
from mtrkit.cli.parsing import positive
from mtrkit.errors import InputError
from mtrkit.exporting import export
from mtrkit.measure import batches, open_images, takes_clips
from mtrkit.measure.images import OWN_IMAGES

EPILOG = """examples:
  mtrkit export vim_tiny_patch16_224 --checkpoint vim_t.pth --ratio 0.3 --out vim_t_30.onnx
  mtrkit export vim_micro_patch4_stride2_32 --checkpoint pretrained --ratio 0 --out dense.pt2
  mtrkit export vim_tiny_patch16_224 --format aotinductor --out compiled.pt2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, one reduction, and what to write."""
    add_model(parser, None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument(
        "--format", choices=["onnx", "pt2", "aotinductor"], help="what to write (default: by the name of the file)"
    )
    parser.add_argument("--opset", type=positive, default=18, help="ONNX operator set, 18 or more (default: 18)")
    add_reduction(parser, [0.3], many=False, many_methods=False)
    add_input(parser, "what the file is compared on (default: two bundled images)")


def run(args: argparse.Namespace) -> int:
    """Reduce, export and say what was written."""
    check_target(args.out, (".onnx", ".pt2"), "exported models")
    model, out = load_model(args), Output(args.json)
    reduce_if_asked(model, args.method, args)
    done = export(model, args.out, _input(args, model), format=args.format, opset=args.opset)
    out.say(f"{args.model}, {count_parameters(model)}", *(f"{name}: {text}" for name, text in done.metadata.items()))
    size = done.path.stat().st_size / 1e6
    out.say(f"saved: {done.path} ({done.format}, {size:.1f} MB), at most {done.error:.1e} from the model's own output")
    written = {"format": done.format, "error": done.error, "metadata": done.metadata}
    out.document({"model": args.model, "out": done.path, "bytes": done.path.stat().st_size, **written})
    return 0


def _input(args: argparse.Namespace, model: nn.Module) -> Tensor:
    """A batch of what the model takes."""
    if args.input is not None:
        return read_input(args.input, args, model)[1][None]
    if takes_clips(model):
        raise InputError(f"{args.model} takes clips; give a video as --input, on which the file is compared")
    return torch.cat(list(batches(open_images(OWN_IMAGES).spread(2), preprocess_from(args, model), 2)))
