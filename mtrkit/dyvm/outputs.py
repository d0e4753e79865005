"""What a pass leaves for the loss: of the student in training, and of the model that teaches it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrkit.adapters import find_host
from mtrkit.api import reduction_disabled
from mtrkit.ops import columns_without, stream_tokens
from mtrkit.types import ReducedStream


class DyVMOutputs(NamedTuple):
    """What a training pass of a :class:`~mtrkit.dyvm.DyVMTraining` gives.

    All patches stand in their first order, so that one index names a patch here and in the teacher's features.

    Attributes:
        logits: What the model answers.
        masks: (B, M) per stage: 1 for patches that it keeps, otherwise 0. Gradients pass through.
        gates: (B, blocks, 2): 1 for forward and backward scans that run, otherwise 0. Gradients pass through. ``None``
            without selectors.
        features: (B, M, D) of the patches after the final norm; those of a dropped one are the last it had.
        keep: Share ρ of the patches that each stage is to keep.
        block_target: Share of the scans that is to run.
    """

    logits: Any
    masks: tuple[Tensor, ...]
    gates: Tensor | None
    features: Tensor
    keep: float
    block_target: float | None


class TeacherOutputs(NamedTuple):
    """What the teacher says: its logits, and the features (B, M, D) of all patches after the final norm."""

    logits: Any
    features: Tensor


@torch.no_grad()
def teacher_outputs(model: nn.Module, images: Tensor) -> TeacherOutputs:
    """Run a teacher, a frozen copy of the model from before training, in eval mode; its reduction does not count."""
    host, adapter = find_host(model)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = adapter.blocks(host)[-1].register_forward_hook(lambda block, inputs, found: seen.append(found))
    try:
        with reduction_disabled(model):
            logits = model(images)
    finally:
        hook.remove()
    return TeacherOutputs(logits, patch_features(host, *seen[-1]))


def patch_features(host: Any, hidden: Tensor, residual: Tensor | ReducedStream) -> Tensor:
    """(B, M, D): the patches of the full sequence after the final norm, from what the last block gives."""
    tokens = stream_tokens(hidden, residual)
    places = find_host(host)[1].special_at(host)(tokens.shape[1])
    return host.norm_f(columns_without(tokens, places))
