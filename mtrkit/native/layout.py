"""Shapes of scan tensors, and their order in memory: channels next to each other, or tokens next to each other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.types import Scan


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a (B, E, L) view lie next to each other in memory."""
    return x.shape[1] > 1 and x.stride(1) == 1


def empty_as(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A fresh dense (B, E, L) tensor in the memory order of ``x``."""
    batch, channels, length = x.shape
    dtype = dtype or x.dtype
    if channels_last(x):
        return x.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)
    return x.new_empty((batch, channels, length), dtype=dtype)


def expect(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raise :class:`InputError` unless ``x`` has this shape: kernels read memory by address and cannot tell."""
    if tuple(x.shape) != tuple(shape):
        raise InputError(f"{name} has shape {tuple(x.shape)}; expected {tuple(shape)}")


def expect_scan(scan: Scan) -> None:
    """The same for every tensor of a scan."""
    batch, channels, length = scan.u.shape
    states, groups = scan.A.shape[-1], scan.B.shape[1]
    if groups < 1 or channels % groups:
        raise InputError(f"B has {groups} groups; expected a number that divides the {channels} channels of u")
    expected = {
        **dict.fromkeys(("delta", "z"), (batch, channels, length)),
        **dict.fromkeys(("B", "C"), (batch, groups, states, length)),
        **dict.fromkeys(("D", "bias"), (channels,)),
        "A": (channels, states),
    }
    for name, shape in expected.items():
        if (x := getattr(scan, name)) is not None:
            expect(name, x, shape)
