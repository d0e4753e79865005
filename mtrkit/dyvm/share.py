"""How many of the scans run, on images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mtrkit.errors import InputError
from mtrkit.methods.dyvm import DyVM
from mtrkit.patch import Reduction, reductions_in
from mtrkit.types import ReducedStream


@torch.no_grad()
def measure_scan_share(model: nn.Module, images: Tensor | Iterable[Tensor], batch_size: int = 32) -> float:
    """Measure the share of the scans that run at inference, and count FLOPs by it from now on.

    Training aims at a share of choices that are drawn; those made at inference keep more, so the target says nothing of
    the cost.

    Args:
        model: A model with ``apply_reduction(model, "dyvm", …)`` or a :class:`~mtrkit.dyvm.DyVMTraining`, in eval mode.
        images: (N, C, H, W), or batches of them, on the model's device.
        batch_size: Images per pass, of a tensor.

    Returns:
        The mean over images, blocks and both directions. ``reduction_info`` and ``count_flops`` use it, and a
        :meth:`~mtrkit.dyvm.DyVMTraining.checkpoint` that is made afterwards holds it.

    Raises:
        InputError: The model has no selectors or is in training mode, or no images were given.
    """
    reduction, parts = _gated(model)
    total, count = 0.0, 0

    def record(hidden: Tensor, stream: ReducedStream) -> None:
        nonlocal total, count
        if stream.gated is not None:
            for gates in stream.gated.gates:
                total, count = total + float(gates.double().sum()), count + gates.numel()

    reduction.recorders.append(record)
    try:
        for batch in images.split(batch_size) if isinstance(images, Tensor) else images:
            model(batch)
    finally:
        reduction.recorders.remove(record)
    if not count:
        raise InputError("no images were given, so there is nothing to measure; give some")
    parts.scan_share = total / count
    return parts.scan_share


def _gated(model: nn.Module) -> tuple[Reduction, DyVM]:
    found = [reduction for _, reduction in reductions_in(model)]
    parts = found[0].trained if found else None
    if not isinstance(parts, DyVM) or parts.block_target is None:
        raise InputError("the model chooses no scans; call mtrkit.apply_reduction(model, 'dyvm', checkpoint=…) first")
    if parts.training:
        raise InputError("choices that are drawn say nothing of inference; call .eval() first")
    return found[0], parts
