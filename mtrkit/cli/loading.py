"""From arguments to models: the dense one, and one for every reduction that was asked for."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mtrkit.adapters import find_adapter
from mtrkit.api import apply_reduction, count_flops, reduction_info
from mtrkit.cli.options import MethodChoice
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


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """Channels, frames of a clip, height and width that the model was built for."""
    return find_adapter(model).input_size(model)


def count_parameters(model: nn.Module) -> str:
    """In millions, for people."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters"


def reduce_model(model: nn.Module, method: MethodChoice, args: argparse.Namespace) -> None:
    """Apply one method, to the one amount that the arguments ask for."""
    amount = {"ratio": args.ratio} if args.r is None else {"r": args.r}
    options = {"layers": args.layers} | dict(args.option) | method.options
    apply_reduction(model, method.name, **(options | amount))


@dataclass(frozen=True)
class Candidate:
    """A model to measure: the dense one (method ``"dense"``, ratio 0) or a reduced one.

    Attributes:
        method: The method as it was asked for.
        ratio: Share of the FLOPs asked for, or removed by the ``r`` tokens per layer that were asked for.
        model: Shares its weights with the other candidates.
        gflops: Of one image, in the papers' count.
        promised: How many times faster it would be if time were FLOPs.
        reached: Share of the FLOPs removed.
        info: What was done; ``None`` for the dense model.
        options: Of the method, as they were given.
        r: Tokens per layer asked for, if that was.
    """

    method: str
    ratio: float
    model: nn.Module = field(repr=False)
    gflops: float
    promised: float = 1.0
    reached: float = 0.0
    info: ReductionInfo | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    r: int | None = None

    @property
    def amount(self) -> str:
        """What was asked for, in words."""
        return f"{self.ratio:g}" if self.r is None else f"r={self.r}"

    @property
    def name(self) -> str:
        """Unique among the candidates of a command."""
        return DENSE if self.info is None else f"{self.method} {self.amount}"


def candidates(
    model: nn.Module,
    methods: Sequence[MethodChoice],
    ratios: Sequence[float],
    layers: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    removals: Sequence[int] = (),
) -> list[Candidate]:
    """The dense model first, then every method at every ratio and removal above 0, without repetitions.

    Args:
        model: The dense model.
        methods: How to reduce it.
        ratios: Shares of the FLOPs to remove.
        layers: Where, for methods that do not say.
        options: Of every method, unless it has its own.
        removals: Tokens per layer to remove.
    """
    dense = Candidate(DENSE, 0.0, model, count_flops(model).gflops)
    amounts = [{"ratio": ratio} for ratio in dict.fromkeys(ratios) if ratio] + [{"r": r} for r in removals if r]
    wanted = {method.text: method for method in methods}.values()
    shared = {"layers": layers} | dict(options or {})
    return [dense, *(_reduced(model, method, shared, amount) for method in wanted for amount in amounts)]


def _reduced(model: nn.Module, method: MethodChoice, shared: Mapping[str, Any], amount: Mapping[str, Any]) -> Candidate:
    options = dict(shared) | method.options
    reduced = apply_reduction(twin(model), method.name, **(options | dict(amount)))
    info = reduction_info(reduced)
    assert info is not None
    return Candidate(
        method.text,
        amount.get("ratio", info.ratio_reached),
        reduced,
        info.flops_reduced.gflops,
        info.promised_speedup,
        info.ratio_reached,
        info,
        {name: value for name, value in options.items() if name != "layers"},
        amount.get("r"),
    )
