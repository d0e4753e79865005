"""The compiled extensions ``selective_scan_cuda`` and ``causal_conv1d_cuda`` on our operators, in their calling forms.

The Python code of mamba_ssm, causal_conv1d and their forks calls these from its own autograd functions. The forms of
``causal_conv1d_cuda`` have changed four times; they differ in the number of arguments, by which they are told apart.
Backward passes run the forward pass again: what the forward pass hands over for them is in a layout of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.scan import selective_scan
from mtrkit.standin.conv import causal_conv1d_update, convolve, convolve_packed, last_inputs, refuse
from mtrkit.standin.scan import selective_scan_fn

Maybe = Tensor | None
_CHUNK = 2048  # tokens per chunk of the CUDA kernel, which keeps a state for each


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Maybe,
    z: Maybe,
    delta_bias: Maybe,
    delta_softplus: bool,
) -> list[Tensor]:
    """``selective_scan_cuda.fwd``.

    Returns:
        The output before the gate (B, E, L); (B, E, chunks, 2N), NaN but for the last state at ``[:, :, -1, 1::2]``,
        which is all that Python code reads of it; and the gated output if there is a gate.
    """
    with torch.no_grad():
        y, last = selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
        chunks = -(-u.shape[2] // _CHUNK)
        states = last.new_full((*last.shape[:2], chunks, 2 * last.shape[2]), float("nan"))
        states[:, :, -1, 1::2] = last
        return [y, states] if z is None else [y, states, _gated(y, z)]


def scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Maybe,
    z: Maybe,
    delta_bias: Maybe,
    dout: Tensor,
    x: Maybe,
    out: Maybe,
    dz: Maybe,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Maybe]:
    """``selective_scan_cuda.bwd``: gradients of u, delta, A, B, C, D and delta_bias, ``None`` for what is absent.

    With a gate its gradient follows, written to ``dz`` if that is given; then the gated output, if it is asked for.
    """
    del x

    def run(*given: Any) -> Any:
        tensors: tuple[Any, ...] = (*given, delta_softplus)
        return selective_scan_fn(*tensors)

    *found, grad_z, grad_bias = _grads(run, (u, delta, A, B, C, D, z, delta_bias), dout)
    results = [*found, grad_bias]
    if z is not None:
        results.append(_written(grad_z, dz))
    if z is not None and recompute_out_z:
        if out is None:
            raise InputError(
                "selective_scan_cuda.bwd was asked for the gated output without the output before the gate"
            )
        results.append(_gated(out, z))
    return results


def conv_forward(x: Tensor, weight: Tensor, bias: Maybe, *rest: Any) -> Maybe:
    """``causal_conv1d_cuda.causal_conv1d_fwd``: the output, or ``None`` in the form that takes one to write to.

    ``rest`` is (silu) in 1.0, (seq_idx, silu) in 1.1, (seq_idx, initial_states, final_states_out, silu) from 1.2, and
    (seq_idx, initial_states, out, final_states_out, silu) from 1.5.1.
    """
    names = _form("causal_conv1d_fwd", rest, _FORWARD)
    initial, final = names.get("initial_states"), names.get("final_states_out")
    with torch.no_grad():
        y = _convolve(x, weight, bias, initial, names.get("seq_idx"), names["silu"])
        if final is not None:
            final.copy_(last_inputs(x, initial, final.shape[2]))
        if "out" not in names:
            return y
        names["out"].copy_(y)
    return None


def conv_backward(x: Tensor, weight: Tensor, bias: Maybe, dout: Tensor, *rest: Any) -> tuple[Maybe, ...] | None:
    """``causal_conv1d_cuda.causal_conv1d_bwd``: gradients of x, weight and bias; from 1.2 also of the initial states.

    ``rest`` is (dx, silu) in 1.0, (seq_idx, dx, silu) in 1.1, (seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu) from 1.2; from 1.5.1 all gradients are written to what is given, which is (seq_idx,
    initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu).
    """
    names = _form("causal_conv1d_bwd", rest, _BACKWARD)
    initial, final = names.get("initial_states"), names.get("dfinal_states")
    seq_idx, silu, past = names.get("seq_idx"), names["silu"], weight.shape[-1] - 1

    def run(x: Tensor, weight: Tensor, bias: Maybe, initial: Maybe) -> Any:
        y = _convolve(x, weight, bias, initial, seq_idx, silu)
        return y if final is None else (y, last_inputs(x, initial, past))

    grads = _grads(run, (x, weight, bias, initial), dout if final is None else (dout, final))
    if "dweight" not in names:
        dx, *others = (_written(grads[0], names["dx"]), *grads[1:3])
        if "return_dinitial_states" not in names:
            return (dx, *others)
        return (dx, *others, grads[3] if names["return_dinitial_states"] else None)
    for name, grad in zip(("dx", "dweight", "dbias", "dinitial_states"), grads, strict=True):
        _written(grad, names[name])
    return None


def conv_update(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Maybe, *rest: Any) -> Maybe:
    """``causal_conv1d_cuda.causal_conv1d_update``: the output, or ``None`` in the form that takes one to write to.

    ``rest`` is (silu) in 1.0, (silu, cache_seqlens) in 1.4, (silu, cache_seqlens, conv_state_indices) in 1.5, and
    (out, silu, cache_seqlens, conv_state_indices) from 1.5.1.
    """
    names = _form("causal_conv1d_update", rest, _UPDATE)
    places = {name: names.get(name) for name in ("cache_seqlens", "conv_state_indices")}
    with torch.no_grad():
        y = causal_conv1d_update(x, conv_state, weight, bias, "silu" if names["silu"] else None, **places)
        if "out" not in names:
            return y
        names["out"].copy_(y)
    return None


_STATES = ("seq_idx", "initial_states")
_FORWARD: tuple[tuple[str, ...], ...] = (
    ("silu",),
    ("seq_idx", "silu"),
    (*_STATES, "final_states_out", "silu"),
    (*_STATES, "out", "final_states_out", "silu"),
)
_BACKWARD: tuple[tuple[str, ...], ...] = (
    ("dx", "silu"),
    ("seq_idx", "dx", "silu"),
    (*_STATES, "dfinal_states", "dx", "return_dinitial_states", "silu"),
    (*_STATES, "dfinal_states", "dx", "dweight", "dbias", "dinitial_states", "silu"),
)
_UPDATE: tuple[tuple[str, ...], ...] = (
    ("silu",),
    ("silu", "cache_seqlens"),
    ("silu", "cache_seqlens", "conv_state_indices"),
    ("out", "silu", "cache_seqlens", "conv_state_indices"),
)


def _form(function: str, rest: Sequence[Any], forms: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """The arguments behind the tensors, by name."""
    for form in forms:
        if len(form) == len(rest):
            return dict(zip(form, rest, strict=True))
    known = ", ".join(str(form) for form in forms)
    raise InputError(f"causal_conv1d_cuda.{function} got {len(rest)} arguments behind the tensors; expected {known}")


def _convolve(x: Tensor, weight: Tensor, bias: Maybe, initial: Maybe, seq_idx: Maybe, silu: bool) -> Tensor:
    if seq_idx is None:
        return convolve(x, weight, bias, initial, silu)
    refuse("causal_conv1d_cuda with seq_idx", initial_states=initial)
    return convolve_packed(x, weight, bias, seq_idx, silu)


def _grads(run: Callable[..., Any], inputs: Sequence[Maybe], grad: Any) -> list[Maybe]:
    """Gradients of the inputs in their dtypes, ``None`` for those that are absent, by running forward again."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = run(*leaves)
    present = [x for x in leaves if x is not None]
    found = iter(torch.autograd.grad(outputs, present, grad))
    return [None if x is None else next(found) for x in leaves]


def _gated(y: Tensor, z: Tensor) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) * F.silu(z.to(wide))).to(z.dtype)


def _written(value: Maybe, place: Maybe) -> Maybe:
    """The value, in the place that is given for it."""
    return value if place is None or value is None else place.copy_(value)
