"""The precision a model runs in, by name."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from mtrkit.errors import OptionError

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("float32", *_HALVES, *(f"amp-{name}" for name in _HALVES))


@dataclass(frozen=True)
class Precision:
    """``float32``, a half precision for weights and images, or ``amp-`` and one for autocast over float32."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in PRECISIONS:
            raise OptionError(f"precision {self.name!r} is unknown; choose one of {', '.join(PRECISIONS)}")

    @property
    def weights(self) -> torch.dtype:
        """What weights and images are stored as."""
        return _HALVES.get(self.name, torch.float32)

    def cast(self, model: nn.Module) -> nn.Module:
        """Give the model its weights in this precision, in place."""
        return model.to(self.weights)

    def context(self, device: torch.device) -> AbstractContextManager[object]:
        """What to run the model in."""
        if not self.name.startswith("amp-"):
            return nullcontext()
        return torch.autocast(device.type, _HALVES[self.name.removeprefix("amp-")])
