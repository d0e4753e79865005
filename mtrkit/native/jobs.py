"""How tensors are handed to the compiled library: the structs of native.c field by field."""

import struct

import torch
from torch import Tensor

from mtrkit.errors import InputError

# Sizes, then (address, strides) of each tensor, then plain addresses.
SCAN = struct.Struct("10q40q12q9q")
CONV = struct.Struct("6q16q3q")
PROJECT = struct.Struct("6q16q3q2q4q")  # a convolution's, then the product's
PACK = struct.Struct("3qd2q")
NORM = struct.Struct("2qd5q")
MIXER = struct.Struct("9qd11q14q")  # of native_mixer.h
MATCH = struct.Struct("9q")
SLOTS = struct.Struct("11q")
MERGE = struct.Struct("10q")
SUM = struct.Struct("5q")
SOFTPLUS = struct.Struct("3q8qq")
NO_VIEW = (0, 0, 0, 0)
GIVEN_DELTA, NO_FACTORS = (0, 0, 0), (0, 0, 0, 0, 0)  # rank, add and sum_steps; dt and dt_weight


def as_float(x: Tensor) -> Tensor:
    """In float32, whatever its strides."""
    return x if x.dtype is torch.float32 else x.float()


def dense(x: Tensor) -> Tensor:
    """In float32 and contiguous; the compiled library reads no memory but the CPU's."""
    if not x.is_cpu:
        raise InputError(f"a tensor is on {x.device} and others are on the CPU; move them to one device")
    x = as_float(x)
    return x if x.is_contiguous() else x.contiguous()


def view_of(x: Tensor | None) -> tuple[int, int, int, int]:
    """Address and strides of a (B, E, L) tensor."""
    if x is None:
        return NO_VIEW
    batch, channel, time = x.stride()
    return (x.data_ptr(), batch, channel, time)


def rows_of(x: Tensor) -> tuple[int, int, int, int]:
    """Address and strides of a (B, G, N, L) tensor whose third dimension has stride 1."""
    batch, group, _, time = x.stride()
    return (x.data_ptr(), batch, group, time)


def address(x: Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 without one."""
    return 0 if x is None else x.data_ptr()
