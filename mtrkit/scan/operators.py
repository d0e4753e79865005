"""Scan and convolution as torch operators, so that compile, export and autograd see one node per call.

Each operator has one implementation for every device, which takes the compiled kernel where that can run and
torch operations elsewhere; a shape rule for tracing; and a derivative that is an operator again. They are
registered through ``torch.library.Library``, whose calls cost less than those of ``torch.library.custom_op``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native import scan as kernels
from mtrkit.native import tokens
from mtrkit.native.layout import empty_as
from mtrkit.native.library import library
from mtrkit.scan import torch_conv, torch_scan
from mtrkit.scan.torch_scan import CHUNK

_lib = torch.library.Library("mtrkit", "DEF")  # torch forgets the operators when this object goes
_SCAN_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_lib.define(f"selective_scan({_SCAN_INPUTS}, bool delta_softplus, bool reverse, bool save) -> (Tensor, Tensor, Tensor)")
_lib.define(
    f"selective_scan_backward(Tensor grad_y, Tensor? grad_last, {_SCAN_INPUTS}, Tensor checkpoints, "
    "bool delta_softplus, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_lib.define("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor")
_lib.define(
    "causal_conv1d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse)"
    " -> (Tensor, Tensor, Tensor)"
)
_lib.define("delta_softplus(Tensor delta, Tensor bias) -> Tensor")
_lib.define("nearest(Tensor metric, Tensor src, Tensor dst) -> Tensor")


def runs_compiled(x: Tensor) -> bool:
    """Whether the compiled kernel takes this tensor: on the CPU, not float64, and the library is there."""
    return x.device.type == "cpu" and x.dtype != torch.float64 and not library().missing


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    forward = kernels.scan_forward if runs_compiled(u) else torch_scan.scan_forward
    return forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, save)


def _scan_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u.shape
    states, groups, dtype = A.shape[1], B.shape[1], torch.promote_types(u.dtype, torch.float32)
    last = u.new_empty((batch, states, channels), dtype=dtype).transpose(1, 2)
    if runs_compiled(u):
        shape = kernels.checkpoint_shape(batch, channels, length, states, groups, rest[-1])
    else:
        shape = (-(-length // CHUNK), batch, groups, channels // groups, states) if rest[-1] else (0,)
    return empty_as(u), last, u.new_empty(shape, dtype=dtype)


def _scan_backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    backward = kernels.scan_backward if runs_compiled(u) else torch_scan.scan_backward
    if checkpoints.numel() == 0:  # nothing was kept: autograd was asked for behind the caller's back
        checkpoints = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, True)[2]
    grads = backward(grad_y, grad_last, u, delta, A, B, C, D, z, delta_bias, checkpoints, delta_softplus, reverse)
    return tuple(map(_settle, grads, _grad_templates(u, delta, A, B, C, D, z, delta_bias)))


def _scan_backward_shapes(grad_y: Tensor, grad_last: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return _grad_templates(*rest[:8])


def _grad_templates(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, ...]:
    """Unwritten gradients in the dtypes and memory orders that the backward operators promise."""
    rows = (x.new_empty((*x.shape[:2], x.shape[3], x.shape[2])).transpose(2, 3) for x in (B, C))
    return (
        empty_as(u),
        empty_as(delta),
        _dense(A),
        *rows,
        _dense(D, u),
        _map_as(z, u),
        _dense(delta_bias, u),
    )


def _map_as(x: Tensor | None, other: Tensor) -> Tensor:
    return other.new_empty(0) if x is None else empty_as(x)


def _dense(x: Tensor | None, other: Tensor | None = None) -> Tensor:
    """An unwritten contiguous tensor like ``x``; empty if there is none."""
    if x is not None:
        return x.new_empty(x.shape)
    assert other is not None
    return other.new_empty(0)


def _settle(grad: Tensor, template: Tensor) -> Tensor:
    """The gradient itself where it is as promised, else a copy that is; no two results share memory."""
    owned = grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
    if owned and grad.dtype == template.dtype and grad.stride() == template.stride():
        return grad
    return template.copy_(grad)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    forward = kernels.conv_forward if runs_compiled(x) else torch_conv.conv_forward
    return forward(x, weight, bias, silu, reverse)


def _conv_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return empty_as(x)


def _conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, ...]:
    backward = kernels.conv_backward if runs_compiled(x) else torch_conv.conv_backward
    grads = backward(grad_y, x, weight, bias, silu, reverse)
    return tuple(map(_settle, grads, (empty_as(x), _dense(weight), _dense(bias, x))))


def _conv_backward_shapes(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, ...]:
    return empty_as(x), _dense(weight), _dense(bias, x)


def _softplus(delta: Tensor, bias: Tensor) -> Tensor:
    if runs_compiled(delta):
        return kernels.softplus_forward(delta, bias)
    return _settle(F.softplus(delta + bias[:, None]).to(delta.dtype), empty_as(delta))


def _softplus_shapes(delta: Tensor, bias: Tensor) -> Tensor:
    return empty_as(delta)


def _softplus_keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.bias_dtype = inputs[1].dtype


def _softplus_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    (step,) = ctx.saved_tensors
    grad = grad * -torch.expm1(-step)  # sigmoid(x) = 1 - exp(-softplus(x))
    return grad, grad.sum(dim=(0, 2)).to(ctx.bias_dtype)


def _scan_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, reverse, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])
    ctx.flags = (softplus, reverse)


def _scan_derivative(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    grads = torch.ops.mtrkit.selective_scan_backward(grad_y, grad_last, *tensors, checkpoints, *ctx.flags)
    return (*_only_present(grads, tensors), None, None, None)


def _conv_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.flags = inputs
    ctx.save_for_backward(x, weight, bias)


def _conv_derivative(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = torch.ops.mtrkit.causal_conv1d_backward(grad_y, *tensors, *ctx.flags)
    return (*_only_present(grads, tensors), None, None)


def _only_present(grads: Any, tensors: Any) -> list[Tensor | None]:
    return [None if tensor is None else grad for grad, tensor in zip(grads, tensors, strict=True)]


for _name, _run, _shapes in (
    ("selective_scan", _scan, _scan_shapes),
    ("selective_scan_backward", _scan_backward, _scan_backward_shapes),
    ("causal_conv1d", _conv, _conv_shapes),
    ("causal_conv1d_backward", _conv_backward, _conv_backward_shapes),
    ("delta_softplus", _softplus, _softplus_shapes),
):
    _lib.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtrkit::{_name}", _shapes, lib=_lib)
torch.library.register_autograd("mtrkit::selective_scan", _scan_derivative, setup_context=_scan_keep, lib=_lib)
torch.library.register_autograd("mtrkit::causal_conv1d", _conv_derivative, setup_context=_conv_keep, lib=_lib)
torch.library.register_autograd("mtrkit::delta_softplus", _softplus_derivative, setup_context=_softplus_keep, lib=_lib)

_lib.impl("nearest", tokens.nearest, "CPU")
torch.library.register_fake("mtrkit::nearest", lambda metric, src, dst: torch.empty_like(src), lib=_lib)

selective_scan = torch.ops.mtrkit.selective_scan.default
causal_conv1d = torch.ops.mtrkit.causal_conv1d.default
delta_softplus = torch.ops.mtrkit.delta_softplus.default
nearest = torch.ops.mtrkit.nearest.default
