"""What stands in the place of the method through which calls enter a reduced model."""

from typing import Any

import torch  # noqa: F401  # torch 2.6 names it in what it compiles of `__call__`
from torch import nn

from mtrkit.errors import UnsupportedModelError
from mtrkit.patch.patched import Patched
from mtrkit.patch.reduction import Reduction


class GuardedEntry(Patched):
    """The method through which calls enter, refusing those that a reduced model cannot serve."""

    def __init__(self, model: nn.Module, name: str, reduction: Reduction) -> None:
        super().__init__(model, name)
        self.reduction = reduction

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let the adapter serve the call, or raise :class:`UnsupportedModelError`."""
        if not self.reduction.active:
            return self.hidden(*args, **kwargs)
        reason = self.reduction.adapter.refusal_of_call(self.name, *args[1:], **kwargs)
        if reason is not None:
            raise UnsupportedModelError(f"{reason}; call the model without, or inside mtrkit.reduction_disabled(model)")
        return self.reduction.adapter.run_call(self.module, self.hidden, *args, **kwargs)
