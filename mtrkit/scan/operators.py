"""Scan, convolution and matching as torch operators, so that compile, export and autograd see one node per call.

Each operator has one implementation for every device, which takes the kernels that its last argument names; a shape
rule for tracing; and a derivative that is an operator again. They are registered through
``torch.library.Library``, whose calls cost less than those of ``torch.library.custom_op``. Their derivatives are for
backward passes only: see :func:`mtrkit.scan.fastpath.under_transform`.
"""

from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native.layout import empty_as
from mtrkit.native.library import LEVELS, current_level, library
from mtrkit.scan.backend import Backend
from mtrkit.scan.kernels import NATIVE, kernels_for, token_kernels
from mtrkit.types import Scan

_lib = torch.library.Library("mtrkit", "DEF")  # torch forgets the operators when this object goes
_TENSORS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias"
_SCAN = f"{_TENSORS}, bool softplus, bool reverse"
KERNELS = f'str kernels="{NATIVE}"'  # the last argument of all
_lib.define(f"selective_scan({_SCAN}, bool save, {KERNELS}) -> (Tensor, Tensor, Tensor)")
_lib.define(
    f"selective_scan_backward(Tensor grad_y, Tensor? grad_last, {_TENSORS}, Tensor checkpoints, bool softplus, "
    f"bool reverse, {KERNELS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_CONV = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse"
_lib.define(f"causal_conv1d({_CONV}, {KERNELS}) -> Tensor")
_lib.define(f"causal_conv1d_backward(Tensor grad_y, {_CONV}, {KERNELS}) -> (Tensor, Tensor, Tensor)")
_lib.define(f"delta_softplus(Tensor delta, Tensor? bias, {KERNELS}) -> Tensor")
_lib.define(f"nearest(Tensor metric, Tensor src, Tensor dst, {KERNELS}) -> Tensor")
_lib.define(f"cosines(Tensor metric, Tensor a, Tensor b, {KERNELS}) -> Tensor")


def kernels_of(arguments: tuple[Any, ...], before: int) -> str:
    """The last argument, behind ``before`` others; torch leaves out what is as by default."""
    return arguments[before] if len(arguments) > before else NATIVE


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    scan, save = Scan(*arguments[:10]), arguments[10]
    return kernels_for(scan.u, kernels_of(arguments, 11)).scan_forward(scan, save)


def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    scan, save = Scan(*arguments[:10]), arguments[10]
    u, states = scan.u, scan.A.shape[1]
    dtype = torch.promote_types(u.dtype, torch.float32)
    last = u.new_empty((u.shape[0], states, u.shape[1]), dtype=dtype).transpose(1, 2)
    kernels = kernels_for(u, kernels_of(arguments, 11))
    shape = kernels.checkpoint_shape(*u.shape, states, scan.B.shape[1], save)
    return empty_as(u), last, u.new_empty(shape, dtype=dtype)


def _scan_backward(grad_y: Tensor, grad_last: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    scan, checkpoints = Scan(*arguments[:8], *arguments[9:11]), arguments[8]
    kernels = kernels_for(scan.u, kernels_of(arguments, 11))
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


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, kernels: str = NATIVE) -> Tensor:
    return kernels_for(x, kernels).conv_forward(x, weight, bias, silu, reverse)


def _conv_shapes(x: Tensor, *_: Any) -> Tensor:
    return empty_as(x)


def _conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    kernels: str = NATIVE,
) -> tuple[Tensor, ...]:
    grads = kernels_for(x, kernels).conv_backward(grad_y, x, weight, bias, silu, reverse)
    return tuple(map(settle, grads, (empty_as(x), _dense(weight), _dense(bias, x))))


def _conv_backward_shapes(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    return empty_as(x), _dense(weight), _dense(bias, x)


def _softplus(delta: Tensor, bias: Tensor | None, kernels: str = NATIVE) -> Tensor:
    return kernels_for(delta, kernels).softplus_forward(delta, bias)


def _softplus_shapes(delta: Tensor, *_: Any) -> Tensor:
    return empty_as(delta)


def _nearest(metric: Tensor, src: Tensor, dst: Tensor, kernels: str = NATIVE) -> Tensor:
    return token_kernels(kernels).nearest(metric, src, dst)


def _nearest_shapes(metric: Tensor, src: Tensor, *_: Any) -> Tensor:
    return src.new_empty(src.shape)


def _cosines(metric: Tensor, a: Tensor, b: Tensor, kernels: str = NATIVE) -> Tensor:
    return token_kernels(kernels).cosines(metric, a, b)


def _cosines_shapes(metric: Tensor, a: Tensor, *_: Any) -> Tensor:
    return metric.new_empty(a.shape)


def _softplus_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.bias_dtype = None if inputs[1] is None else inputs[1].dtype


def _softplus_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (step,) = ctx.saved_tensors
    # sigmoid(x) = 1 - exp(-s) = 2 tanh(s / 2) / (1 + tanh(s / 2)); torch.expm1 takes five times as long on a CPU.
    half = torch.tanh(step / 2)
    grad = grad * (2 * half / (1 + half))
    return grad, None if ctx.bias_dtype is None else grad.sum(dim=(0, 2)).to(ctx.bias_dtype), None


def _scan_keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    softplus, reverse, _, kernels = inputs[8:]
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs[:8], output[2])
    ctx.flags = (softplus, reverse, kernels)


def _scan_derivative(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, checkpoints = ctx.saved_tensors
    grads = torch.ops.mtrkit.selective_scan_backward(grad_y, grad_last, *tensors, checkpoints, *ctx.flags)
    return (*only_present(grads, tensors), None, None, None, None)


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
    ("nearest", _nearest, _nearest_shapes),
    ("cosines", _cosines, _cosines_shapes),
):
    _lib.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtrkit::{_name}", _shapes, lib=_lib)
torch.library.register_autograd("mtrkit::selective_scan", _scan_derivative, setup_context=_scan_keep, lib=_lib)
derive_convolution("causal_conv1d", tensors=3)
torch.library.register_autograd("mtrkit::delta_softplus", _softplus_derivative, setup_context=_softplus_keep, lib=_lib)
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


def selective_scan(scan: Scan, kernels: str = NATIVE) -> tuple[Tensor, Tensor]:
    """Output and last state; states are kept for a backward pass only if there will be one."""
    save = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in scan)
    y, last, _ = torch.ops.mtrkit.selective_scan.default(*scan, save, kernels)
    return y, last


def _status() -> tuple[bool, str]:
    missing = library().missing
    return True, f"torch fallback: {missing}" if missing else f"compiled, {LEVELS[current_level()]}"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


BACKEND = Backend("native", _status, _refuses, selective_scan, causal_conv1d, delta_softplus, steps_through_runs=True)
