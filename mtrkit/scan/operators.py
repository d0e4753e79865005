"""Scan, convolution and matching as torch operators, so that compile, export and autograd see one node per call.

Each operator has one implementation for every device, which takes the first set of kernels that can run there; a
shape rule for tracing; and a derivative that is an operator again. They are registered through
``torch.library.Library``, whose calls cost less than those of ``torch.library.custom_op``. Their derivatives are for
backward passes only: see :func:`mtrkit.scan.fastpath.under_transform`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import scan as native_scan
from mtrkit.native import tokens
from mtrkit.native.layout import empty_as
from mtrkit.native.library import LEVELS, current_level, library
from mtrkit.scan import torch_conv, torch_scan
from mtrkit.scan.backend import Backend
from mtrkit.types import Scan


class Kernels(NamedTuple):
    """One implementation of everything that the operators below need."""

    scan_forward: Callable[[Scan, bool], tuple[Tensor, Tensor, Tensor]]
    scan_backward: Callable[[Tensor, Tensor | None, Scan, Tensor], tuple[Tensor, ...]]
    checkpoint_shape: Callable[..., Any]
    conv_forward: Callable[..., Tensor]
    conv_backward: Callable[..., tuple[Tensor, ...]]
    softplus_forward: Callable[[Tensor, Tensor | None], Tensor]


C = Kernels(
    native_scan.scan_forward,
    native_scan.scan_backward,
    native_scan.checkpoint_shape,
    native_scan.conv_forward,
    native_scan.conv_backward,
    native_scan.softplus_forward,
)
TORCH = Kernels(
    torch_scan.scan_forward,
    torch_scan.scan_backward,
    torch_scan.checkpoint_shape,
    torch_conv.conv_forward,
    torch_conv.conv_backward,
    torch_scan.softplus_forward,
)


def kernels_for(x: Tensor) -> Kernels:
    """The compiled library where it can run, torch elsewhere."""
    return C if compiled_for(x.device.type, x.dtype) else TORCH


def compiled_for(device: str, dtype: torch.dtype) -> bool:
    """Whether the compiled library takes such tensors: on a CPU, but for float64, if it is there."""
    return device == "cpu" and dtype != torch.float64 and not library().missing


_lib = torch.library.Library("mtrkit", "DEF")  # torch forgets the operators when this object goes
_TENSORS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias"
_SCAN = f"{_TENSORS}, bool softplus, bool reverse"
_lib.define(f"selective_scan({_SCAN}, bool save) -> (Tensor, Tensor, Tensor)")
_lib.define(
    f"selective_scan_backward(Tensor grad_y, Tensor? grad_last, {_TENSORS}, Tensor checkpoints, bool softplus, "
    "bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_lib.define("causal_conv1d(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor")
_lib.define(
    "causal_conv1d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse)"
    " -> (Tensor, Tensor, Tensor)"
)
_lib.define("delta_softplus(Tensor delta, Tensor? bias) -> Tensor")
_lib.define("nearest(Tensor metric, Tensor src, Tensor dst) -> Tensor")
_lib.define("cosines(Tensor metric, Tensor a, Tensor b) -> Tensor")


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, save = arguments
    scan = Scan(*fields)
    return kernels_for(scan.u).scan_forward(scan, save)


def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, save = arguments
    scan = Scan(*fields)
    u, states = scan.u, scan.A.shape[1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    last = u.new_empty((u.shape[0], states, u.shape[1]), dtype=dtype).transpose(1, 2)
    shape = kernels_for(u).checkpoint_shape(*u.shape, states, scan.B.shape[1], save)
    return empty_as(u), last, u.new_empty(shape, dtype=dtype)


def _scan_backward(grad_y: Tensor, grad_last: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, checkpoints, softplus, reverse = arguments
    scan = Scan(*(*tensors, softplus, reverse))
    kernels = kernels_for(scan.u)
    if checkpoints.numel() == 0:  # nothing was kept: autograd was asked for behind the caller's back
        checkpoints = kernels.scan_forward(scan, True)[2]
    grads = kernels.scan_backward(grad_y, grad_last, scan, checkpoints)
    return tuple(map(settle, grads, grad_templates(scan)))


def _scan_backward_shapes(grad_y: Tensor, grad_last: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    return grad_templates(Scan(*arguments[:8]))


def grad_templates(scan: Scan) -> tuple[Tensor, ...]:
    """Unwritten gradients in the dtypes and memory orders that the backward operators promise."""
    u = scan.u
    rows = (x.new_empty((*x.shape[:2], x.shape[3], x.shape[2])).transpose(2, 3) for x in (scan.B, scan.C))
    gate = u.new_empty(0) if scan.z is None else empty_as(scan.z)
    return empty_as(u), empty_as(scan.delta), _dense(scan.A), *rows, _dense(scan.D, u), gate, _dense(scan.bias, u)


def _dense(x: Tensor | None, other: Tensor | None = None) -> Tensor:
    """An unwritten contiguous tensor like ``x``; empty if there is none."""
    if x is not None:
        return x.new_empty(x.shape)
    assert other is not None
    return other.new_empty(0)


def settle(grad: Tensor, template: Tensor) -> Tensor:
    """The gradient itself where it is as promised, else a copy that is; no two results share memory."""
    owned = grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()
    if owned and grad.dtype == template.dtype and grad.stride() == template.stride():
        return grad
    return template.copy_(grad)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return kernels_for(x).conv_forward(x, weight, bias, silu, reverse)


def _conv_shapes(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return empty_as(x)


def _conv_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, ...]:
    grads = kernels_for(x).conv_backward(grad_y, x, weight, bias, silu, reverse)
    return tuple(map(settle, grads, (empty_as(x), _dense(weight), _dense(bias, x))))


def _conv_backward_shapes(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, ...]:
    return empty_as(x), _dense(weight), _dense(bias, x)


def _softplus(delta: Tensor, bias: Tensor | None) -> Tensor:
    return kernels_for(delta).softplus_forward(delta, bias)


def _softplus_shapes(delta: Tensor, bias: Tensor | None) -> Tensor:
    return empty_as(delta)


def _softplus_keep(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.bias_dtype = None if inputs[1] is None else inputs[1].dtype


def _softplus_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    (step,) = ctx.saved_tensors
    # sigmoid(x) = 1 - exp(-s) = 2 tanh(s / 2) / (1 + tanh(s / 2)); torch.expm1 takes five times as long on a CPU.
    half = torch.tanh(step / 2)
    grad = grad * (2 * half / (1 + half))
    return grad, None if ctx.bias_dtype is None else grad.sum(dim=(0, 2)).to(ctx.bias_dtype)


def _scan_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, reverse, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])
    ctx.flags = (softplus, reverse)


def _scan_derivative(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    grads = torch.ops.mtrkit.selective_scan_backward(grad_y, grad_last, *tensors, checkpoints, *ctx.flags)
    return (*only_present(grads, tensors), None, None, None)


def derive_convolution(name: str, tensors: int) -> None:
    """Give the derivative of a convolution, by its backward operator, in x, weight and bias.

    ``tensors`` is how many arguments are tensors, these three first.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.flags = inputs[tensors:]

    def derive(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: under activation checkpointing each read computes them again
        grads = getattr(torch.ops.mtrkit, f"{name}_backward")(grad_y, *saved, *ctx.flags)
        return (*only_present(grads, saved[:3]), *[None] * (len(saved) + len(ctx.flags) - 3))

    torch.library.register_autograd(f"mtrkit::{name}", derive, setup_context=keep, lib=_lib)


def only_present(grads: Any, tensors: Any) -> list[Tensor | None]:
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
derive_convolution("causal_conv1d", tensors=3)
torch.library.register_autograd("mtrkit::delta_softplus", _softplus_derivative, setup_context=_softplus_keep, lib=_lib)
_lib.impl("nearest", tokens.nearest, "CPU")
torch.library.register_fake("mtrkit::nearest", lambda metric, src, dst: torch.empty_like(src), lib=_lib)
_lib.impl("cosines", tokens.cosines, "CPU")
torch.library.register_fake("mtrkit::cosines", lambda metric, a, b: metric.new_empty(a.shape), lib=_lib)

causal_conv1d = torch.ops.mtrkit.causal_conv1d.default
delta_softplus = torch.ops.mtrkit.delta_softplus.default
nearest = torch.ops.mtrkit.nearest.default
cosines = torch.ops.mtrkit.cosines.default


def refuse_derivatives(name: str) -> None:
    """Make the derivatives of an operator raise :class:`InputError` instead of being zero without a word."""

    def refuse(ctx: Any, *grads: Tensor) -> Any:
        raise InputError(
            f"mtrkit::{name} has no derivative: it runs in backward passes, which can be differentiated no further, or "
            "was captured under torch.no_grad(). For second derivatives run the model inside "
            'mtrkit.use_scan_backend("reference"); to train what torch.export or torch.jit.trace captured, capture it '
            "with gradients enabled"
        )

    torch.library.register_autograd(f"mtrkit::{name}", refuse, lib=_lib)


for _name in ("selective_scan_backward", "causal_conv1d_backward"):
    refuse_derivatives(_name)


def selective_scan(scan: Scan) -> tuple[Tensor, Tensor]:
    """Output and last state; states are kept for a backward pass only if there will be one."""
    save = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in scan)
    y, last, _ = torch.ops.mtrkit.selective_scan.default(*scan, save)
    return y, last


def _status() -> tuple[bool, str]:
    missing = library().missing
    return True, f"torch fallback: {missing}" if missing else f"compiled, {LEVELS[current_level()]}"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


BACKEND = Backend("native", _status, _refuses, selective_scan, causal_conv1d, delta_softplus, steps_through_runs=True)
