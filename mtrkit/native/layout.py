"""Memory order of scan tensors: channels next to each other, or tokens next to each other."""

import torch
from torch import Tensor


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
