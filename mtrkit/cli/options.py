"""Arguments that several commands share, and what they ask for together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtrkit.cli.parsing import Layers, checkpoint, device, input_size, layers, method, option, positive, threshold
from mtrkit.errors import OptionError
from mtrkit.measure.candidates import MethodChoice, own_amount
from mtrkit.measure.images import OWN_IMAGES
from mtrkit.measure.precision import PRECISIONS


def add_model(parser: argparse.ArgumentParser, default: str | None) -> None:
    """MODEL, --checkpoint, --origin and --input-size.

    Args:
        parser: Where to add them.
        default: For --checkpoint; ``None`` for random weights.
    """
    shown = "'random'" if default is None else f"{default!r}, what is bundled or published for MODEL"
    parser.add_argument("model", metavar="MODEL", help="a name shown by `mtrkit list models`")
    parser.add_argument(
        "--checkpoint",
        type=checkpoint,
        metavar="FILE",
        default=default,
        help=f".pth or .safetensors file, 'pretrained', 'random' weights, or hf:org/repo/file (default: {shown})",
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
        f"train-{{0000..0063}}.tar; or {OWN_IMAGES!r}. For a model of clips: a folder of videos per class, or a list "
        "with a line `path label` for each video"
    )
    parser.add_argument("--data", required=True, metavar="DATA", help=help)


def add_reduction(
    parser: argparse.ArgumentParser,
    ratio: Sequence[float],
    many: bool = True,
    many_methods: bool = True,
    default: str = "mtr",
    removals: bool = True,
    thresholds: bool = False,
) -> None:
    """--method, --ratio, --r, --threshold, --layers and --option.

    Args:
        parser: Where to add them.
        ratio: Defaults.
        many: Whether several ratios may be given.
        many_methods: The same for methods.
        default: Method.
        removals: Whether --r may be given.
        thresholds: The same for --threshold.
    """
    add_method(parser, many_methods, default)
    add_ratio(parser, ratio, many)
    if removals:
        _add_removals(parser, many)
    if thresholds:
        _add_thresholds(parser, many)
    parser.add_argument(
        "--layers",
        nargs="+",
        type=layers,
        action=Layers,
        metavar="LAYER",
        help="blocks to reduce after: numbers from 1 on as in 5 10 15, or even, odd, every4 "
        "(default: the method's own, mostly 5, 10, 15 of 24)",
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


def add_method(parser: argparse.ArgumentParser, many: bool, default: str) -> None:
    """--method: how to reduce."""
    choice = method(default)
    parser.add_argument(
        "--method",
        nargs="+" if many else None,
        type=method,
        metavar="NAME[:OPTION=VALUE,...]",
        default=[choice] if many else choice,
        help=f"as in rmeeto:metric=delta,layers=even; see `mtrkit list methods` (default: {default})",
    )


def add_ratio(parser: argparse.ArgumentParser, ratio: Sequence[float], many: bool) -> None:
    """--ratio: the share to remove. Where several may be given, :func:`ratios` says which are meant."""
    shown = " ".join(map(str, ratio))
    parser.add_argument(
        "--ratio",
        nargs="+" if many else None,
        type=float,
        help=f"share of the FLOPs to remove, in [0, 1) (default: {shown})",
    )
    parser.set_defaults(usual_ratios=list(ratio))


def _add_removals(parser: argparse.ArgumentParser, many: bool) -> None:
    """--r: how many to remove."""
    parser.add_argument(
        "--r",
        nargs="+" if many else None,
        type=positive,
        default=[] if many else None,
        help="tokens to remove after each layer, " + ("beside --ratio if that is given" if many else "not --ratio"),
    )


def _add_thresholds(parser: argparse.ArgumentParser, many: bool) -> None:
    """--threshold: how similar what merges has to be."""
    parser.add_argument(
        "--threshold",
        nargs="+" if many else None,
        type=threshold,
        default=[] if many else None,
        metavar="T",
        help="merge while the similarity is at least this, "
        + ("beside --ratio if that is given" if many else "not --ratio")
        + "; one for all layers, or one for each as in 0.95,0.9,0.85 (docs/thresholds.md)",
    )


def ratios(args: argparse.Namespace) -> list[float]:
    """The ratios that are meant: those given; without them the usual ones, or none beside --r and --threshold."""
    if args.ratio is not None:
        return list(args.ratio) if isinstance(args.ratio, list) else [args.ratio]
    given = vars(args)
    return [0.0] if given.get("r") or given.get("threshold") else list(args.usual_ratios)


def amount(args: argparse.Namespace, chosen: MethodChoice) -> dict[str, Any]:
    """The one amount that is meant, as ``apply_reduction`` takes it; nothing if the method's options say it.

    Raises:
        OptionError: It is said here and there.
    """
    given = {name: vars(args).get(name) for name in ("ratio", "r", "threshold")}
    found = {name: value for name, value in given.items() if value is not None}
    own = own_amount(options_of(args, chosen))
    if found and own:
        said, of_method = next(iter(found)), next(iter(own))
        raise OptionError(f"--{said} and {of_method}= of {chosen.name!r} both say how much to remove; give one")
    return found or ({} if own else {"ratio": args.usual_ratios[0]})


def options_of(args: argparse.Namespace, chosen: MethodChoice) -> dict[str, Any]:
    """Layers and options of a method: its own count more than those of every method."""
    return {"layers": args.layers} | dict(args.option) | chosen.options


def add_running(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype and --threads."""
    parser.add_argument("--device", type=device, help="cpu, cuda, cuda:1 (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="float32",
        help="precision of weights and images; amp- is autocast over float32 weights (default: float32)",
    )
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads."""
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's choice)")


def resolve_running(args: argparse.Namespace) -> torch.device:
    """Set the number of threads, and return the device.

    Raises:
        OptionError: The device is not there, or does not compute.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    found: torch.device = args.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--device {found} cannot be used here ({reason}); see `mtrkit doctor`") from error
    return found
