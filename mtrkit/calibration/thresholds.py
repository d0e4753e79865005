"""Thresholds that remove a wanted share of the FLOPs in the mean over given images."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrkit.adapters import find_host
from mtrkit.api import apply_reduction
from mtrkit.calibration.samples import gather
from mtrkit.errors import OptionError, SmallModelWarning
from mtrkit.measure.weights import twin
from mtrkit.patch import RECORD, Reduction
from mtrkit.schedule import Placement


@torch.no_grad()
def find_thresholds(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    ratio: float = 0.3,
    *,
    method: str = "runs",
    layers: Sequence[int] | Placement | None = None,
    batch_size: int = 32,
    **options: object,
) -> tuple[float, ...]:
    """Find the threshold of each reducing block with which a model loses ``ratio`` of its FLOPs in the mean.

    One block after the other, with the thresholds found so far in force: its threshold is the least strength among the
    strongest links of all images together, as many of them as would leave at a fixed ``ratio``. An image of which much
    is alike then loses more tokens than another. No labels, no gradients; the model stays as it is.

    Args:
        model: As for :func:`apply_reduction`; a patch that it has is left out.
        images: As for :func:`calibrate`: at least 20, of one size, as the model takes them.
        ratio: Share of the FLOPs to remove in the mean, in (0, 1).
        method: One that acts on the strongest links, such as ``"runs"``, ``"rmeeto"`` or ``"tome"``.
        layers: As for :func:`apply_reduction`, which needs the same ones again.
        batch_size: Images per forward pass, and so images that share a count: take that of later use.
        **options: Fields of the method's config.

    Returns:
        What ``apply_reduction(model, method, threshold=…, layers=layers)`` takes. Read the mean that is reached, there
        and on other images, in :func:`reduction_info`.

    Raises:
        InputError: Fewer than 20 images, or of several sizes.
        OptionError: The method ranks no links, or ``ratio`` is 0.
        ScheduleError: ``ratio`` is out of reach.

    Source: that every layer has a threshold of its own is ATM's, arXiv:2505.15160, on ViTs; how they are found here is
    mtrkit's own.
    """
    if ratio == 0:
        raise OptionError("ratio=0 removes nothing, so there are no thresholds to find; give a ratio above 0")
    samples = gather(images, seed=0)
    trial = twin(cast(nn.Module, getattr(model, "_orig_mod", model))).eval()
    wanted: dict[str, Any] = {"input_size": tuple(samples.shape[1:]), "layers": layers, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallModelWarning)  # who applies the result is warned then
        return _find(trial, samples, ratio, method, wanted, batch_size)


def _find(
    trial: nn.Module, samples: Tensor, ratio: float, method: str, wanted: dict[str, Any], batch_size: int
) -> tuple[float, ...]:
    apply_reduction(trial, method, ratio, **wanted)
    plan = _reduction(trial).plan
    tokens, found = (plan.shape.tokens, *plan.schedule), [math.inf] * len(plan.layers)
    for number, layer in enumerate(plan.layers):
        apply_reduction(trial, method, threshold=found, **wanted)
        strengths = _strengths(trial, layer, samples, batch_size)
        leaving = len(samples) * (tokens[layer - 1] - tokens[layer])
        found[number] = float(strengths.topk(leaving).values[-1]) if leaving else math.inf
    return tuple(found)


def _reduction(model: nn.Module) -> Reduction:
    reduction: Reduction = vars(find_host(model)[0])[RECORD]
    return reduction


def _strengths(model: nn.Module, layer: int, samples: Tensor, batch_size: int) -> Tensor:
    """(n,) the strengths of all links behind a block, counted from 1, of all samples."""
    found: list[Tensor] = []

    def watch(behind: int, strength: Tensor) -> None:
        if behind == layer:
            found.append(strength.flatten())

    _reduction(model).watchers.append(watch)
    for batch in samples.split(batch_size):
        model(batch)
    return torch.cat(found)
