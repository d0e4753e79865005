"""The form of a model with trained pruning that a trainer runs."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.adapters import find_host
from mtrkit.dyvm.outputs import DyVMOutputs, patch_features
from mtrkit.errors import OptionError, UnsupportedModelError
from mtrkit.methods.dyvm import DyVM
from mtrkit.patch import DyVMCheckpoint, Reduction, install, prepare_trained, reductions_in, uninstall
from mtrkit.types import ReducedStream


class DyVMTraining(nn.Module):
    """A model and what is trained beside it: ``model.*`` and ``parts.*`` are the names of its parameters.

    The model is patched, in place of an earlier reduction, until :meth:`remove`. In training mode choices are drawn
    from torch's generators and dropped patches are masked, in eval mode it runs as ``apply_reduction`` will run it.

    Args:
        model: A Vim, VideoMamba or Mamba-Reg of a family in ``list_adapters()``, or one that has such a model inside.
        keep: Share ρ of the patches that each stage keeps of what the one before has left.
        block_target: Share of the scans that are to run; ``None``: all, without selectors.
        layers: Blocks after which patches are dropped, counted from 1. Default: after each quarter, 6, 12 and 18 of 24.
        parts: What was trained before, to go on from there, instead of the three above.
        noise: Scale of the Gumbel noise by which patches are drawn; 1 is the paper's. If a predictor's scores differ by
            less, it draws almost evenly in training and chooses otherwise at inference: take less in a short training.

    Attributes:
        outputs: The :class:`DyVMOutputs` of the latest pass in training mode, for the loss; ``None`` after one in eval
            mode.

    Raises:
        UnsupportedModelError: The model's blocks have no scans to choose from.
        OptionError: A value out of range, or parts of a model of other sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        keep: float = 0.7,
        block_target: float | None = 0.8,
        layers: Sequence[int] | None = None,
        parts: DyVM | None = None,
        noise: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= noise < math.inf:
            raise OptionError(f"noise={noise} is a scale, a number of 0 or more")
        host, adapter = find_host(model)
        if parts is None:
            shape = adapter.shape(host, adapter.input_size(host))
            parts = DyVM(shape.dim, shape.widths.inner, shape.depth, layers, keep, block_target)
            like = next(host.parameters())
            parts.to(device=like.device, dtype=like.dtype)
        parts.noise = float(noise)
        install(host, prepare_trained(model, host, adapter, parts))
        self.model, self.parts = model, parts
        self.outputs: DyVMOutputs | None = None

    def forward(self, images: Tensor) -> Any:
        """Images as the model takes them to what it answers."""
        self.outputs = None
        reduction = self._reduction()
        seen: list[tuple[Tensor, ReducedStream]] = []
        record = partial(_remember, seen)
        reduction.recorders.append(record)
        try:
            logits = self.model(images)
        finally:
            reduction.recorders.remove(record)
        if self.training:
            self.parts.scan_share = None  # what was measured before holds no longer
            self.outputs = self._describe(logits, reduction.host, *seen[-1])
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the model wants without weight decay; timm's optimisers ask for them."""
        own = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in own()}

    def checkpoint(self) -> DyVMCheckpoint:
        """What was trained, with the mark of the model's weights as they are now; save both at the same time."""
        return DyVMCheckpoint.of(self.model, self.parts)

    def remove(self) -> nn.Module:
        """Take the patch off the model and return it."""
        uninstall(self._reduction())
        return self.model

    def _reduction(self) -> Reduction:
        found = [reduction for _, reduction in reductions_in(self.model)]
        if len(found) != 1 or found[0].trained is not self.parts:
            raise UnsupportedModelError(
                "the model of this DyVMTraining has been patched by something else, or its patch was removed; make a "
                "new one, DyVMTraining(model, parts=training.parts)"
            )
        return found[0]

    def _describe(self, logits: Any, host: nn.Module, hidden: Tensor, stream: ReducedStream) -> DyVMOutputs:
        gated, parts = stream.gated, self.parts
        assert gated is not None
        gates = torch.stack(gated.gates, dim=1) if gated.gates else None
        return DyVMOutputs(
            logits, gated.kept, gates, patch_features(host, hidden, stream), parts.keep, parts.block_target
        )

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which has made no pass."""
        return vars(self) | {"outputs": None}


def _remember(seen: list[tuple[Tensor, ReducedStream]], hidden: Tensor, stream: ReducedStream) -> None:
    seen.append((hidden, stream))
