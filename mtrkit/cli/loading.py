"""From arguments to models: the dense one, and one for every reduction that was asked for."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mtrkit.adapters import find_adapter
from mtrkit.api import apply_reduction, count_flops, reduction_info
from mtrkit.measure.weights import twin
from mtrkit.models import create_model
from mtrkit.patch import ReductionInfo

DENSE = "dense"


def load_model(args: argparse.Namespace, device: torch.device | str = "cpu") -> nn.Module:
    """Build MODEL with --checkpoint and --input-size, in eval mode."""
    options: dict[str, Any] = {}
    if args.input_size:
        options["img_size"] = args.input_size[-2:]
        if len(args.input_size) == 3:
            options["in_chans"] = args.input_size[0]
    return create_model(args.model, args.checkpoint, **options).eval().to(device)


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model was built for."""
    channels, height, width = find_adapter(model).input_size(model)
    return channels, height, width


def count_parameters(model: nn.Module) -> str:
    """In millions, for people."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters"


@dataclass(frozen=True)
class Candidate:
    """A model to measure: the dense one (method ``"dense"``, ratio 0) or a reduced one.

    Attributes:
        method: Name of the method.
        ratio: Share of the FLOPs asked for.
        model: Shares its weights with the other candidates.
        gflops: Of one image, in the papers' count.
        promised: How many times faster it would be if time were FLOPs.
        reached: Share of the FLOPs removed.
        info: What was done; ``None`` for the dense model.
        options: Of the method, as they were given.
    """

    method: str
    ratio: float
    model: nn.Module = field(repr=False)
    gflops: float
    promised: float = 1.0
    reached: float = 0.0
    info: ReductionInfo | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique among the candidates of a command."""
        return DENSE if self.info is None else f"{self.method} {self.ratio:g}"


def candidates(
    model: nn.Module,
    methods: Sequence[str],
    ratios: Sequence[float],
    layers: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """The dense model first, then every method at every ratio above 0, without repetitions."""
    dense = Candidate(DENSE, 0.0, model, count_flops(model).gflops)
    wanted = dict.fromkeys((method, ratio) for method in methods for ratio in ratios if ratio != 0)
    return [dense, *(_reduced(model, method, ratio, layers, options or {}) for method, ratio in wanted)]


def _reduced(
    model: nn.Module, method: str, ratio: float, layers: Sequence[int] | None, options: Mapping[str, Any]
) -> Candidate:
    reduced = apply_reduction(twin(model), method, ratio, layers=layers, **options)
    info = reduction_info(reduced)
    assert info is not None
    gflops = info.flops_reduced.gflops
    return Candidate(method, ratio, reduced, gflops, info.promised_speedup, info.ratio_reached, info, options)
