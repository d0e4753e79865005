"""From arguments to models; what can be wrong here is found before anything is fetched."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtrkit.api import apply_reduction
from mtrkit.cli.inputs import check_kind, is_bundled, read_input
from mtrkit.cli.options import amount, options_of, ratios
from mtrkit.errors import CheckpointError, InputError
from mtrkit.measure import open_data, takes_clips
from mtrkit.measure.candidates import MethodChoice, candidates
from mtrkit.measure.images import OWN_IMAGES
from mtrkit.measure.shards import find_shards, is_shards
from mtrkit.methods.dyvm import DYVM
from mtrkit.models import create_model, load_weights
from mtrkit.models.registry import MODELS
from mtrkit.models.releases import is_local
from mtrkit.patch import Calibration


def load_model(args: argparse.Namespace, device: torch.device | str = "cpu") -> nn.Module:
    """Build MODEL with --checkpoint, --origin and --input-size, in eval mode; see :func:`build`."""
    options: dict[str, Any] = {}
    if args.input_size:
        options["img_size"] = args.input_size[-2:]
        if len(args.input_size) == 3:
            options["in_chans"] = args.input_size[0]
    if getattr(args, "drop_path", 0):
        options["drop_path_rate"] = args.drop_path
    return build(args, args.model, args.checkpoint, args.origin, **options).to(device)


def build(
    args: argparse.Namespace,
    name: str,
    checkpoint: str | None,
    origin: str | None = None,
    reduced: bool = True,
    **options: Any,
) -> nn.Module:
    """A model in eval mode, of which all that the arguments say is checked before its weights are fetched.

    Args:
        args: Of the command: --data, --input, images, --method and the rest, as far as it has them.
        name: Of the model.
        checkpoint: Its weights; ``None`` for random ones, the same in every run.
        origin: See :func:`mtrkit.create_model`.
        reduced: Whether it is the model that is reduced.
        **options: See :func:`mtrkit.create_model`.

    Raises:
        MtrkitError: Something that the arguments say cannot be.
    """
    check_checkpoint(checkpoint, name)
    check_files(args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **options).eval()
    for path in given_inputs(args):
        check_kind(path, takes_clips(model))
    if checkpoint is None:
        return model
    if not is_local(checkpoint, name):
        _check_all(args, model, reduced)
    return load_weights(model, checkpoint, name, origin=origin)


def check_checkpoint(checkpoint: str | None, name: str) -> None:
    """Raise if there is no such model, or no such file."""
    MODELS.get(name)
    if checkpoint is None or checkpoint == "pretrained" or not is_local(checkpoint, name):
        return
    if not Path(checkpoint).exists():
        raise CheckpointError(f"{checkpoint} does not exist; give a file, or hf:org/repo/file for the Hugging Face Hub")


def check_files(args: argparse.Namespace) -> None:
    """Raise if data, an image, a video or a calibration that is named is not there."""
    given = vars(args)
    data = given.get("data", OWN_IMAGES)
    if data != OWN_IMAGES and not Path(data).exists():
        if not is_shards(data):
            raise InputError(f"{data} is not a folder or file that is there; give one as --data, or {OWN_IMAGES!r}")
        find_shards(data)
    for path in given_inputs(args):
        if not Path(path).is_file():
            raise InputError(f"{path} does not exist or is not a file; give the path of an image or video file")
    for path in given.get("calibration", []):
        Calibration.load(path)


def given_inputs(args: argparse.Namespace) -> list[str]:
    """The files of images or videos that are named one by one."""
    given = vars(args)
    named = [*given.get("images", []), *([args.input] if given.get("input") is not None else [])]
    return [path for path in named if not is_bundled(path)]


def _check_all(args: argparse.Namespace, model: nn.Module, reduced: bool) -> None:
    """Open the data, read the inputs and apply the reductions, on random weights."""
    given = vars(args)
    if "data" in given:
        open_data(args.data, model)
    for path in given_inputs(args):
        read_input(path, args, model)
    if reduced and "method" in given:
        _check_reductions(args, model)


def _check_reductions(args: argparse.Namespace, model: nn.Module) -> None:
    given = vars(args)
    removed, thresholds = _listed(given.get("r")), _listed(given.get("threshold"))
    methods = [method for method in _listed(args.method) if method.name != DYVM.name]  # that is trained, not applied
    candidates(model, methods, ratios(args), args.layers, dict(args.option), removed, thresholds=thresholds)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def count_parameters(model: nn.Module) -> str:
    """In millions, for people."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters"


def reduce_if_asked(model: nn.Module, method: MethodChoice, args: argparse.Namespace) -> None:
    """The same as :func:`reduce_model`; with a ratio of 0 the model stays dense, without a patch."""
    if amount(args, method) != {"ratio": 0}:
        reduce_model(model, method, args)


def reduce_model(model: nn.Module, method: MethodChoice, args: argparse.Namespace) -> None:
    """Apply one method, to the one amount that the arguments ask for."""
    apply_reduction(model, method.name, **(options_of(args, method) | amount(args, method)))
