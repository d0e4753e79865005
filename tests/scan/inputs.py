"""Random scan inputs in the memory orders that the mixers produce, and the float64 truth for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.scan import selective_scan
from mtrkit.scan.reference import selective_scan_reference
from mtrkit.types import Scan


class ScanInputs(NamedTuple):
    """Tensors of a scan, in the order of :func:`mtrkit.selective_scan`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None


def make_inputs(batch=2, channels=24, length=19, states=16, *, groups=None, channels_last=True, bare=False):
    """Inputs like a mixer's: x and z halves of one buffer, B and C slices of another, A negative."""
    per_row = (groups or 1) * states
    x, z = torch.randn(batch, length, 2 * channels).transpose(1, 2).chunk(2, dim=1)
    delta = torch.randn(batch, length, channels).transpose(1, 2)
    rows = torch.randn(batch, length, 5 + 2 * per_row)[..., 5:].transpose(1, 2).chunk(2, dim=1)
    if groups:
        rows = [row.unflatten(1, (groups, states)) for row in rows]
    A = -torch.rand(channels, states) * states
    D, bias = torch.randn(channels), torch.randn(channels) - 3
    inputs = ScanInputs(x, delta, A, *rows, *(() if bare else (D, z, bias)))
    if channels_last:
        return inputs
    return ScanInputs(*(t if t is None else t.contiguous() for t in inputs))


def cast(inputs, dtype):
    """Sequences in ``dtype``; parameters too for float64, else in float32 as the models keep them."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kinds = ScanInputs(dtype, dtype, wide, dtype, dtype, wide, dtype, wide)
    return ScanInputs(*(t if t is None else t.to(kind) for t, kind in zip(inputs, kinds, strict=True)))


def on(device, inputs):
    """The same tensors on a device."""
    return ScanInputs(*(t if t is None else t.to(device) for t in inputs))


def leaves(inputs, dtype=None, device=None):
    """The same tensors as leaves that record gradients, strides kept."""
    return ScanInputs(*(t if t is None else t.detach().to(device, dtype or t.dtype).requires_grad_() for t in inputs))


def truth(inputs, softplus=True, reverse=False):
    """Output and last state of the reference in float64."""
    u, delta, A, B, C, *rest = (t if t is None else t.double() for t in inputs)
    B, C = (t.unsqueeze(1) if t.dim() == 3 else t for t in (B, C))
    return selective_scan_reference(Scan(u, delta, A, B, C, *rest, softplus, reverse))


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, softplus=False, reverse=False, backend="auto"):
    """Output and last state of the public scan."""
    rest = {"delta_softplus": softplus, "return_last_state": True, "backend": backend, "reverse": reverse}
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, **rest)


def present(tensors):
    """Those that are not None."""
    return [t for t in tensors if t is not None]
