"""Read the files that DyVM's authors publish: a model's weights, and what was trained beside them, under one key."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from mtrkit.adapters import find_host
from mtrkit.errors import CheckpointError
from mtrkit.methods.dyvm import DyVM
from mtrkit.models.checkpoint import read_checkpoint
from mtrkit.models.loading import load_state
from mtrkit.patch import DyVMCheckpoint
from mtrkit.patch.trained import load_parts

_HEAD = re.compile(r"layers\.(\d+)\.mixer\.block_head\.(weight|bias)")
_PREDICTOR = "score_predictors."


def load_release(model: nn.Module, path: str | Path, *, keep: float = 0.7, block_target: float = 0.8) -> DyVMCheckpoint:
    """Load a published file into the model, whose weights were trained too, and return what is beside them.

    Args:
        model: Of the family and size that the file is of, such as ``vim_small_patch16_224``.
        path: A file as their training code writes it: weights under ``"model"``, read with ``weights_only=True``.
        keep: Share ρ of the patches that it was trained to keep, which the file does not say. They publish 0.9 for the
            tiny models and 0.7 for the others.
        block_target: Share of the scans that it was trained for: 0.8, or 0.7 for the base models.

    Returns:
        What ``apply_reduction(model, "dyvm", checkpoint=…)`` takes.

    Warns:
        CheckpointWarning: Something was adapted or assumed.

    Raises:
        CheckpointError: The file is unreadable, holds no DyVM, or is of another model; the model stays as it was.
    """
    found = read_checkpoint(path, ema=False)
    trained, found.state = _split(found.state)
    if not trained:
        raise CheckpointError(
            f"{path} has neither `{_PREDICTOR}…` nor `layers.….mixer.block_head.…`, so it is not a file of DyVM; "
            "load the weights of a model without by mtrkit.load_checkpoint"
        )
    host, adapter = find_host(model)
    shape = adapter.shape(host, adapter.input_size(host))
    parts = DyVM(shape.dim, shape.widths.inner, shape.depth, None, keep, block_target)
    load_parts(parts, trained, path)
    load_state(host, found)
    found.warn()
    return DyVMCheckpoint.of(model, parts.eval())


def _split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained beside the model under our names, and the rest."""
    trained, base = {}, {}
    for name, value in state.items():
        head = _HEAD.fullmatch(name)
        if head:
            trained[f"block_heads.{head[1]}.{head[2]}"] = value.to(torch.float32)
        elif name.startswith(_PREDICTOR):
            trained[name] = value.to(torch.float32)
        else:
            base[name] = value
    return trained, base
