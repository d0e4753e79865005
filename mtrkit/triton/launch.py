"""How kernels are launched, and how tensors are handed to them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native.layout import expect
from mtrkit.triton.availability import refusal


def launch(kernel: Any, programs: int, first: Tensor, arguments: tuple[Any, ...], warps: int, **constants: Any) -> None:
    """Run ``programs`` copies of a kernel on the device of ``first``."""
    if not programs:
        return
    with _on(first.device):
        kernel[(programs,)](*arguments, num_warps=warps, **constants)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the device that is current, wherever the tensors are."""
    if device.type == "cpu":
        return nullcontext()
    module = getattr(torch, device.type)
    return nullcontext() if module.current_device() == device.index else module.device(device)


def check_kind(x: Tensor) -> None:
    """Raise :class:`InputError` if kernels do not take tensors like ``x``."""
    refused = refusal(x.device.type, x.dtype)
    if refused:
        raise InputError(f"Triton's kernels cannot run: {refused}")


def positions(x: Tensor) -> Tensor:
    """Contiguous int64."""
    if x.dtype is not torch.int64:
        raise InputError(f"positions have dtype {x.dtype}; give int64")
    return x.contiguous()


def lengths_of(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, L) as kernels read it, for tokens (B, E, L)."""
    if lengths is None:
        return None
    expect("lengths", lengths, (x.shape[0], x.shape[2]))
    return positions(lengths)


def dense(x: Tensor | None) -> Tensor | None:
    """Contiguous, if it is there."""
    return None if x is None else x.contiguous()


def power_of_two(count: int) -> int:
    """The least one that is not below ``count``."""
    return 1 << (count - 1).bit_length()
