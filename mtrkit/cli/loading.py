"""From arguments to models, and from models to what the commands say of them."""

import argparse
from typing import Any

import torch
from torch import nn

from mtrkit.api import apply_reduction
from mtrkit.measure.candidates import MethodChoice
from mtrkit.models import create_model


def load_model(args: argparse.Namespace, device: torch.device | str = "cpu") -> nn.Module:
    """Build MODEL with --checkpoint, --origin and --input-size, in eval mode."""
    options: dict[str, Any] = {}
    if args.input_size:
        options["img_size"] = args.input_size[-2:]
        if len(args.input_size) == 3:
            options["in_chans"] = args.input_size[0]
    if getattr(args, "drop_path", 0):
        options["drop_path_rate"] = args.drop_path
    return create_model(args.model, args.checkpoint, origin=args.origin, **options).eval().to(device)


def count_parameters(model: nn.Module) -> str:
    """In millions, for people."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters"


def reduce_model(model: nn.Module, method: MethodChoice, args: argparse.Namespace) -> None:
    """Apply one method, to the one amount that the arguments ask for."""
    amount = {"ratio": args.ratio} if args.r is None else {"r": args.r}
    options = {"layers": args.layers} | dict(args.option) | method.options
    apply_reduction(model, method.name, **(options | amount))
