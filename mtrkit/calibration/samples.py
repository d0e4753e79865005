"""The samples that a model is calibrated from, and how far its answers are from the dense ones."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError

LEAST = 20  # samples; fewer say nothing


def gather(samples: Tensor | Iterable[Any], seed: int) -> Tensor:
    """All samples (N, …) in one tensor, shuffled, as several passes over the same ones are needed.

    Raises:
        InputError: They are too few, no tensors, of several sizes, or of a type that no model takes.
    """
    batches = [samples] if isinstance(samples, Tensor) else [_inputs(batch) for batch in samples]
    sizes = sorted({tuple(batch.shape[1:]) for batch in batches})
    if len(sizes) > 1:
        raise InputError(f"all images must be of one size, but {sizes[0]} and {sizes[1]} were given; resize them")
    every = torch.cat(batches) if batches else torch.empty(0)
    if len(every) < LEAST:
        raise InputError(f"calibrating needs at least {LEAST} images, better some hundreds; {len(every)} were given")
    if every.dtype in (torch.uint8, torch.bool):
        raise InputError(
            f"images of {every.dtype} are not what a model takes; convert and normalise them as for the model"
        )
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).to(every.device)]


def _inputs(batch: Any) -> Tensor:
    """The input of a batch, which may be a pair of input and label."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor) or not first.dim():
        raise InputError(
            f"images must be a tensor (N, C, H, W) or batches of it, with or without labels, not {type(first).__name__}"
        )
    return first


def log_answers(answer: Any) -> Tensor:
    """Log-probabilities (B, …, K) in float32, of logits (B, K), (B, L, K) or a map (B, K, H, W).

    Raises:
        InputError: The answer is something else, or not finite.
    """
    logits = getattr(answer, "logits", answer)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3, 4):
        shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        raise InputError(
            f"the model answered with a {type(logits).__name__}{shape}, but calibrating compares logits: (B, classes), "
            "(B, L, vocabulary) or (B, classes, H, W)"
        )
    logits = logits.movedim(1, -1) if logits.dim() == 4 else logits
    if not logits.isfinite().all():
        raise InputError("the model's answers are not finite on these images, so there is nothing to compare")
    return logits.float().log_softmax(dim=-1)


def divergence(dense: Tensor, reduced: Tensor) -> Tensor:
    """(B,) Kullback–Leibler divergence of log-probabilities (B, …, K) from the dense ones, mean over the middle."""
    each = (dense.exp() * (dense - reduced)).sum(dim=-1)
    return each.flatten(1).mean(dim=1) if each.dim() > 1 else each
