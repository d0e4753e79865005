"""Arguments that several commands share, and how they are read."""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path

import torch

from mtrkit.errors import OptionError
from mtrkit.measure.candidates import MethodChoice
from mtrkit.measure.images import BUNDLED
from mtrkit.measure.precision import PRECISIONS
from mtrkit.schedule import EveryNth


def add_model(parser: argparse.ArgumentParser, checkpoint: str | None) -> None:
    """MODEL, --checkpoint, --origin and --input-size.

    Args:
        parser: Where to add them.
        checkpoint: The default for --checkpoint; ``None`` for random weights.
    """
    default = "random weights" if checkpoint is None else f"{checkpoint!r}, what is bundled or published for MODEL"
    parser.add_argument("model", metavar="MODEL", help="a name shown by `mtrkit list`")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        default=checkpoint,
        help=f".pth or .safetensors file, 'pretrained', or hf:org/repo/file (default: {default})",
    )
    parser.add_argument(
        "--origin", metavar="NAME", help="the model that FILE is of, if it does not say it (docs/checkpoints.md)"
    )
    parser.add_argument(
        "--input-size",
        type=input_size,
        metavar="SIZE",
        help="224, 224x320 or 3x224x224 (default: the model's own)",
    )


def add_data(parser: argparse.ArgumentParser, use: str = "") -> None:
    """--data, for what ``use`` says."""
    help = (
        f"{use}a folder of images per class; WebDataset shards, which are a folder of .tar files or a pattern such as "
        f"train-{{0000..0063}}.tar; or {BUNDLED!r}. For a model of clips: a folder of videos per class, or a list with "
        "a line `path label` for each video"
    )
    parser.add_argument("--data", required=True, metavar="DATA", help=help)


def add_reduction(
    parser: argparse.ArgumentParser,
    ratio: Sequence[float],
    many: bool = True,
    many_methods: bool = True,
    default: str = "mtr",
    removals: bool = True,
) -> None:
    """--method, --ratio, --r, --layers and --option.

    Args:
        parser: Where to add them.
        ratio: Defaults.
        many: Whether several ratios may be given.
        many_methods: The same for methods.
        default: Method.
        removals: Whether --r may be given.
    """
    _add_method(parser, many_methods, default)
    _add_ratio(parser, ratio, many)
    if removals:
        _add_removals(parser, many)
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        help="blocks to reduce after, counted from 1 (default: the method's own, mostly 5, 10, 15 of 24)",
    )
    parser.add_argument(
        "--option", nargs="+", type=option, default=[], metavar="NAME=VALUE", help="options of every method"
    )


def add_calibrations(parser: argparse.ArgumentParser) -> None:
    """--calibration: reductions that were fitted to the model."""
    parser.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="reductions that `mtrkit calibrate` has fitted to the model, beside the methods",
    )


def _add_method(parser: argparse.ArgumentParser, many: bool, default: str) -> None:
    """--method: how to reduce."""
    choice = method(default)
    parser.add_argument(
        "--method",
        nargs="+" if many else None,
        type=method,
        metavar="NAME[:OPTION=VALUE,...]",
        default=[choice] if many else choice,
        help=f"as in rmeeto:metric=delta,layers=even; see `mtrkit list` (default: {default})",
    )


def _add_ratio(parser: argparse.ArgumentParser, ratio: Sequence[float], many: bool) -> None:
    """--ratio: the share to remove."""
    shown = " ".join(map(str, ratio))
    parser.add_argument(
        "--ratio",
        nargs="+" if many else None,
        type=float,
        default=list(ratio) if many else ratio[0],
        help=f"share of the FLOPs to remove, in [0, 1) (default: {shown})",
    )


def _add_removals(parser: argparse.ArgumentParser, many: bool) -> None:
    """--r: how many to remove."""
    parser.add_argument(
        "--r",
        nargs="+" if many else None,
        type=positive,
        default=[] if many else None,
        help="tokens to remove after each layer, " + ("also" if many else "instead of --ratio"),
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype and --threads."""
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="float32",
        help="precision of weights and images; amp- is autocast over float32 weights (default: float32)",
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")


def resolve_running(args: argparse.Namespace) -> torch.device:
    """Set the number of threads, and return the device.

    Raises:
        OptionError: The device is not there.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    found: torch.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--device {found} cannot be used here ({reason}); see `mtrkit doctor`") from error
    return found


def device(text: str) -> torch.device:
    """Type of --device."""
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; expected cpu, cuda or cuda:1") from error


def positive(text: str) -> int:
    """Type of counts: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Type of counts that may be none: an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def input_size(text: str) -> tuple[int, ...]:
    """Type of --input-size: one to three numbers with x between them; one stands for height and width."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected 224, 224x320 or 3x224x224")
    numbers = tuple(map(int, parts))
    return numbers * 2 if len(numbers) == 1 else numbers


def option(text: str) -> tuple[str, object]:
    """Type of --option: a name and a Python literal, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not an option; expected NAME=VALUE, such as similarity=l2")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def method(text: str) -> MethodChoice:
    """Type of --method: a name, and options of this method alone after a colon."""
    name, _, rest = text.partition(":")
    options = dict(option(part) for part in rest.split(",")) if rest else {}
    if "layers" in options:
        options["layers"] = layers(str(options["layers"]))
    return MethodChoice(text, name, options)


def layers(text: str) -> Sequence[int] | EveryNth:
    """Blocks to reduce after: even, odd, every4 or 5+10+15."""
    places = {"even": EveryNth(2), "odd": EveryNth(2, start=1)}
    if text in places:
        return places[text]
    if text.startswith("every") and text[5:].isdecimal():
        return EveryNth(int(text[5:]))
    if all(part.isdecimal() for part in text.split("+")):
        return tuple(map(int, text.split("+")))
    raise argparse.ArgumentTypeError(f"layers={text!r} is unknown; expected even, odd, every4 or 5+10+15")
