"""Scan and convolution of tokens that last several positions, with derivatives.

Operators of their own beside those of operators.py: of their kernels only the compiled library, on a CPU, and Triton's,
on a GPU, can do it. Elsewhere such tokens are written out, see runs.py.
"""

from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native.layout import empty_as
from mtrkit.scan.kernels import NATIVE, TORCH, Kernels, kernels_for
from mtrkit.scan.operators import (
    KERNELS,
    derive_convolution,
    grad_templates,
    kernels_of,
    only_present,
    refuse_derivatives,
    settle,
)
from mtrkit.types import Runs, Scan

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_SCAN = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, Tensor lengths"
_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor lengths, int positions, bool silu, bool reverse"
_FLAGS = "int positions, bool softplus, bool reverse"
_lib.define(f"scan_runs({_SCAN}, {_FLAGS}, bool save, {KERNELS}) -> (Tensor, Tensor)")
_lib.define(
    f"scan_runs_backward(Tensor grad_y, {_SCAN}, Tensor checkpoints, {_FLAGS}, {KERNELS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_lib.define(f"convolve_runs({_CONV}, {KERNELS}) -> Tensor")
_lib.define(f"convolve_runs_backward(Tensor grad_y, {_CONV}, {KERNELS}) -> (Tensor, Tensor, Tensor)")


def scan_runs(scan: Scan, runs: Runs, kernels: str = NATIVE) -> Tensor:
    """The mean over each token's positions of the scan (B, E, L)."""
    save = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in scan)
    flags = (*runs, scan.softplus, scan.reverse, save, kernels)
    y: Tensor = torch.ops.mtrkit.scan_runs.default(*scan.tensors, *flags)[0]
    return y


def convolve_runs(
    x: Tensor, weight: Tensor, bias: Tensor | None, runs: Runs, reverse: bool, kernels: str = NATIVE
) -> Tensor:
    """The same of the causal convolution of x (B, E, L) with weight (E, 1, K), and SiLU at each position."""
    y: Tensor = torch.ops.mtrkit.convolve_runs.default(x, weight.squeeze(1), bias, *runs, True, reverse, kernels)
    return y


def _stepping(x: Tensor, name: str) -> Kernels:
    """The kernels of that name, which step through runs."""
    kernels = kernels_for(x, name)
    if kernels is TORCH:
        raise InputError(
            f"tokens of {x.dtype} on {x.device} that last several positions are written out, and the operator for "
            "runs was called; it takes tensors on a CPU with the compiled library, but for float64, or on a GPU with "
            "Triton"
        )
    return kernels


def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    softplus, reverse, save = arguments[10:13]
    scan = Scan(*arguments[:8])._replace(softplus=softplus, reverse=reverse)
    kernels = _stepping(scan.u, kernels_of(arguments, 13))
    y, _, checkpoints = kernels.scan_forward(scan, save, arguments[8])
    return y, checkpoints


def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    u, A, B, save = arguments[0], arguments[2], arguments[3], arguments[12]
    batch, channels, length = u.shape
    kernels = _stepping(u, kernels_of(arguments, 13))
    shape = kernels.checkpoint_shape(batch, channels, length, A.shape[1], B.shape[1], save)
    return empty_as(u), u.new_empty(shape, dtype=torch.float32)


def _scan_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    lengths, checkpoints, _, softplus, reverse = arguments[8:13]
    scan = Scan(*arguments[:8])._replace(softplus=softplus, reverse=reverse)
    kernels = _stepping(scan.u, kernels_of(arguments, 13))
    if checkpoints.numel() == 0:  # nothing was kept: autograd was asked for behind the caller's back
        checkpoints = kernels.scan_forward(scan, True, lengths)[2]
    grads = kernels.scan_backward(grad_y, None, scan, checkpoints, lengths)
    return tuple(map(settle, grads, grad_templates(scan)))


def _scan_backward_shapes(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return grad_templates(Scan(*arguments[:8]))


def _scan_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    positions, softplus, reverse, _, kernels = inputs[9:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:9], output[1])
    ctx.flags = (positions, softplus, reverse, kernels)


def _scan_derivative(ctx: Any, grad_y: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing each read computes them again
    grads = torch.ops.mtrkit.scan_runs_backward(grad_y, *saved, *ctx.flags)
    return (*only_present(grads, saved[:8]), *[None] * 6)


def _convolve(*arguments: Any) -> Tensor:
    x, weight, bias, lengths, _, silu, reverse = arguments[:7]
    return _stepping(x, kernels_of(arguments, 7)).conv_forward(x, weight, bias, silu, reverse, lengths)


def _convolve_shapes(x: Tensor, *_: Any) -> Tensor:
    return empty_as(x)


def _convolve_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x, weight, bias, lengths, _, silu, reverse = arguments[:7]
    kernels = _stepping(x, kernels_of(arguments, 7))
    grads = kernels.conv_backward(grad_y, x, weight, bias, silu, reverse, lengths)
    return tuple(map(settle, grads, _convolve_backward_shapes(grad_y, *arguments)))


def _convolve_backward_shapes(grad_y: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bias = x.new_empty(0) if rest[0] is None else rest[0].new_empty(rest[0].shape)
    return empty_as(x), weight.new_empty(weight.shape), bias


for _name, _run, _shapes in (
    ("scan_runs", _scan, _scan_shapes),
    ("scan_runs_backward", _scan_backward, _scan_backward_shapes),
    ("convolve_runs", _convolve, _convolve_shapes),
    ("convolve_runs_backward", _convolve_backward, _convolve_backward_shapes),
):
    _lib.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtrkit::{_name}", _shapes, lib=_lib)
torch.library.register_autograd("mtrkit::scan_runs", _scan_derivative, setup_context=_scan_keep, lib=_lib)
derive_convolution("convolve_runs", tensors=4)
for _name in ("scan_runs_backward", "convolve_runs_backward"):
    refuse_derivatives(_name)
