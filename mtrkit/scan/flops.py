"""What each operator of mtrkit costs, told to those who count: torch's FlopCounterMode and fvcore.

A formula counts as :mod:`mtrkit.schedule.cost` does: one per multiply-add of a product, the scan as 9·L·E·N + 2·L·E,
norms and activations as nothing. fvcore counts one per multiply-add too and gets these numbers; torch counts two and
gets twice as much, so that its total is twice that of ``count_flops(directions="all")``. A backward operator counts as
twice the forward one, as for a product.

Both learn of the formulas when they are imported, before mtrkit or after it: importing either takes longer than
importing mtrkit.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch

from mtrkit.importing import when_imported
from mtrkit.scan import fused, operators, run_operators  # noqa: F401  (they define what is counted)

Shape = Any  # a tensor's shape; None for an argument that is not given
Formula = Callable[..., int]
Handle = Callable[[list[Any], list[Any]], int]

_COSINE = 6  # per channel of a token: its square, the sum, and the division by its length, as R-MeeTo counts them


def _scan(u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, D: Shape, z: Shape, *rest: Any) -> int:
    return prod(u) * (9 * A[1] + (D is not None) + (z is not None))


def _recurrence(step: Shape, x: Shape, A: Shape, *rest: Any) -> int:
    """A scan's, without what is around it; A is (G, N, F)."""
    return prod(x) * 9 * A[1]


def _conv(x: Shape, weight: Shape, *rest: Any) -> int:
    return _convolved(x[0], x[1], x[2], weight[-1])


def _convolved(batch: int, channels: int, positions: int, taps: int) -> int:
    return batch * channels * (positions + taps - 1) * taps  # K − 1 steps of padding, as torch counts them


def _beyond(batch: int, length: int, channels: int, states: int, positions: int) -> int:
    """At each position beyond a token's first the state goes on, and is added to its mean."""
    return batch * max(positions - length, 0) * channels * 2 * states


def _scan_runs(u: Shape, delta: Shape, A: Shape, *rest: Any) -> int:
    positions = rest[6]  # behind B, C, D, z, the bias of Δ and the lengths
    return _scan(u, delta, A, *rest) + _beyond(u[0], u[2], u[1], A[1], positions)


def _conv_runs(x: Shape, weight: Shape, bias: Shape, lengths: Shape, positions: int, *rest: Any) -> int:
    return _convolved(x[0], x[1], max(x[2], positions), weight[-1])


def _mixer(
    hidden: Shape,
    in_proj: Shape,
    out_proj: Shape,
    directions: list[Shape],
    halve: bool,
    reads: str,
    lengths: Shape = None,
    positions: int = 0,
) -> int:
    batch, length, width = hidden
    inner, positions = out_proj[1], max(length, positions)
    count = batch * length * width * (in_proj[0] + inner)
    for conv, _, x_proj, dt_proj, _, decay, _ in zip(*[iter(directions)] * 7, strict=True):
        count += _convolved(batch, inner, positions, conv[-1])
        count += batch * length * inner * (x_proj[0] + dt_proj[1] + 9 * decay[1] + 2)
        count += _beyond(batch, length, inner, decay[1], positions)
    return count


def _nearest(metric: Shape, src: Shape, dst: Shape, *rest: Any) -> int:
    """Two per multiply-add, as R-MeeTo's counter has it."""
    batch, sources, targets, width = metric[0], src[1], dst[1], metric[2]
    return batch * width * (2 * sources * targets + _COSINE * (sources + targets))


def _cosines(metric: Shape, a: Shape, b: Shape, *rest: Any) -> int:
    return prod(a) * metric[2] * (2 + _COSINE)


def _nothing(*arguments: Any) -> int:
    return 0


def _backward(forward: Formula, skipped: int) -> Formula:
    """Twice a forward formula, whose arguments come after ``skipped`` others."""
    return lambda *arguments: 2 * forward(*arguments[skipped:])


def _scan_runs_backward(grad_y: Shape, *arguments: Any) -> int:
    tensors, lengths, positions = arguments[:8], arguments[8], arguments[10]  # without the checkpoints
    return 2 * _scan_runs(*tensors, lengths, positions)


FORMULAS: dict[str, Formula] = {
    "selective_scan": _scan,
    "selective_scan_backward": _backward(_scan, 2),
    "causal_conv1d": _conv,
    "causal_conv1d_backward": _backward(_conv, 1),
    "scan_runs": _scan_runs,
    "scan_runs_backward": _scan_runs_backward,
    "convolve_runs": _conv_runs,
    "convolve_runs_backward": _backward(_conv_runs, 1),
    "mixer": _mixer,
    "add_rms_norm": _nothing,
    "delta_softplus": _nothing,
    "recurrence": _recurrence,
    "nearest": _nearest,
    "cosines": _cosines,
}
"""Operator → what one call costs, from the shapes of its tensors and its other arguments."""


def flop_handles() -> dict[str, Handle]:
    """Handles by which fvcore counts mtrkit's operators.

    fvcore knows them already if it was imported beside mtrkit. For another program that counts on graphs of
    ``torch.jit.trace`` and takes handles in fvcore's form.

    Returns:
        ``"mtrkit::operator"`` → a function of the node's inputs and outputs (``torch._C.Value``) that returns its
        cost, one per multiply-add.
    """
    return {f"mtrkit::{name}": _handle(formula) for name, formula in FORMULAS.items()}


def _handle(formula: Formula) -> Handle:
    return lambda inputs, outputs: formula(*map(_read, inputs))


def _read(value: Any) -> Any:
    """A value of a traced graph as the formulas take it: shapes of tensors, lists of them, constants."""
    if value.type().kind() == "TensorType":
        return value.type().sizes()
    if value.node().kind() == "prim::ListConstruct":
        return [_read(item) for item in value.node().inputs()]
    return value.toIValue()


def _tell_torch(module: Any) -> None:
    for name, formula in FORMULAS.items():
        target = getattr(torch.ops.mtrkit, name)
        if target not in module.flop_registry:
            module.register_flop_formula(target)(_doubled(formula))


def _doubled(formula: Formula) -> Formula:
    """The formula as torch calls it, and in its unit."""

    def flops(*arguments: Any, out_shape: Any = None, **options: Any) -> int:
        return 2 * formula(*arguments, **options)

    return flops


def _tell_fvcore(module: Any) -> None:
    known = getattr(module, "_DEFAULT_SUPPORTED_OPS", None)  # those that every new analysis begins with
    if isinstance(known, dict):
        known.update(flop_handles())


def add_formula(name: str, formula: Formula) -> None:
    """Tell the counters of one more operator."""
    FORMULAS[name] = formula
    _tell_counters()


def _tell_counters() -> None:
    when_imported("torch.utils.flop_counter", _tell_torch)
    when_imported("fvcore.nn.flop_count", _tell_fvcore)


_tell_counters()
