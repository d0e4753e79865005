"""Sizes of layers, by what the layers themselves say: a weight may be quantised, sharded or a wrapper's own."""

import math
from typing import Any

from torch import nn

_INSIDE = ("base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of peft, FSDP1, checkpoint_wrapper


def unwrapped(layer: Any) -> Any:
    """The layer inside of the usual wrappers."""
    while True:
        inside = next((name for name in _INSIDE if name in layer._modules), None)
        if inside is None:
            return layer
        layer = layer._modules[inside]


def macs(layer: Any) -> int:
    """Multiply-adds of a linear layer per token, or of a convolution per place; 0 for what is neither."""
    layer = unwrapped(layer)
    if hasattr(layer, "in_features"):
        return int(layer.in_features * layer.out_features)
    if not hasattr(layer, "kernel_size"):
        return 0
    return int(layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.kernel_size))


def macs_inside(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    """The sum over all layers of some kinds inside."""
    return sum(macs(layer) for layer in module.modules() if isinstance(layer, kinds))
