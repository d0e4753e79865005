"""Sizes of layers, by what the layers themselves say: a weight may be quantised, sharded or a wrapper's own."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from mtrkit.errors import UnsupportedModelError

_INSIDE = ("base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of peft, FSDP1, checkpoint_wrapper


def unwrapped(layer: Any) -> Any:
    """The layer inside of the usual wrappers."""
    while True:
        inside = next((name for name in _INSIDE if name in layer._modules), None)
        if inside is None:
            return layer
        layer = layer._modules[inside]


def size_of(layer: Any, name: str) -> Any:
    """What a layer says under ``name``, such as its ``in_features``, from inside of the usual wrappers.

    Raises:
        UnsupportedModelError: It says nothing.
    """
    layer = unwrapped(layer)
    if not hasattr(layer, name):
        raise UnsupportedModelError(
            f"a {type(layer).__name__} stands where a layer says its `{name}`, and has none; give it that attribute or "
            "take it off the layer"
        )
    return getattr(layer, name)


def macs(layer: Any) -> int:
    """Multiply-adds of a linear layer per token, or of a convolution per place; 0 for what is neither."""
    layer = unwrapped(layer)
    if hasattr(layer, "in_features"):
        return int(layer.in_features * layer.out_features)
    if not hasattr(layer, "in_channels"):
        return 0
    return int(layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.kernel_size))


def layers_inside(module: nn.Module, *axes: int) -> Iterator[nn.Module]:
    """The layers inside that move along so many axes: 0 for a linear one, 1 and 2 for convolutions of that many.

    What adapters have beside a layer is not counted.
    """
    layer = unwrapped(module)
    if not macs(layer):
        for child in layer.children():
            yield from layers_inside(child, *axes)
    elif len(getattr(layer, "kernel_size", ())) in axes:
        yield layer


def macs_inside(module: nn.Module, *axes: int) -> int:
    """The sum over :func:`layers_inside`."""
    return sum(map(macs, layers_inside(module, *axes)))
