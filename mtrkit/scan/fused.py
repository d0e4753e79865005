"""A whole mixer, and the norm before it, as one operator each: for inference when no intermediate is requested."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native import mixer as native
from mtrkit.native.chain import Chain
from mtrkit.native.weights import BlockWeights, DirectionWeights, MixerWeights, wide
from mtrkit.scan import steps
from mtrkit.scan.fastpath import MIXED, inference_kernels, no_tracing
from mtrkit.scan.kernels import TRITON, C, kernels_for, triton_kernels
from mtrkit.scan.operators import refuse_derivatives
from mtrkit.types import Runs, Signals

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define(
    "mixer(Tensor hidden, Tensor in_proj, Tensor out_proj, Tensor[] directions, bool halve, str reads, "
    "Tensor? lengths=None, int positions=0) -> Tensor[]"
)
_lib.define("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")


def _mixer(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: list[Tensor],
    halve: bool,
    reads: str,
    lengths: Tensor | None = None,
    positions: int = 0,
) -> list[Tensor]:
    """The mixer, the directions' weights one after the other, the names of the signals that are read, and the runs."""
    runs = None if lengths is None else Runs(lengths, positions)
    return _mix(hidden, unflatten(in_proj, out_proj, directions, halve), reads.split(), runs)


def _mix(hidden: Tensor, weights: MixerWeights, reads: Sequence[str], runs: Runs | None) -> list[Tensor]:
    """By Triton's kernels, by the compiled library, or by single operators if neither can run here."""
    lengths = None if runs is None else runs.lengths
    if inference_kernels(hidden) == TRITON:
        return triton_kernels().whole.mix(hidden, weights, reads, lengths)
    if kernels_for(hidden) is C and hidden.dtype in MIXED:
        return native.mix(hidden, weights, reads, lengths)
    out, signals = steps.mix(hidden, weights, frozenset(reads), runs=runs)
    return [out, *(_as_declared(name, getattr(signals, name)).contiguous() for name in reads)]


def _as_declared(name: str, signal: Tensor) -> Tensor:
    """Only the mean of Δ is finer than the tokens: what is ranked by it would tie in 16 bits."""
    return wide(signal) if name == "delta_mean" else signal


def flatten(weights: MixerWeights) -> list[Tensor]:
    """One direction after the other; an empty tensor for each missing weight, as tracing knows no list with gaps."""
    ways = weights.directions
    return [way.D.new_empty(0) if weight is None else weight for way in ways for weight in way]


def unflatten(in_proj: Tensor, out_proj: Tensor, directions: list[Tensor], halve: bool) -> MixerWeights:
    """What :func:`flatten` took apart."""
    found, count = [weight if weight.numel() else None for weight in directions], len(DirectionWeights._fields)
    ways = tuple(DirectionWeights(*found[i : i + count]) for i in range(0, len(found), count))  # type: ignore[arg-type]
    return MixerWeights(in_proj, None, out_proj, None, ways, halve)


def mixer_shapes(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, directions: list[Tensor], halve: bool, reads: str, *_: Any
) -> list[Tensor]:
    batch, length = hidden.shape[:2]
    inner, states = out_proj.shape[1], directions[DirectionWeights._fields.index("A_log")].shape[1]
    widths = {"delta": (inner,), "delta_mean": (), "ssm_B": (states,), "ssm_C": (states,), "y": (inner,)}
    dtypes = {"delta_mean": torch.promote_types(hidden.dtype, torch.float32)}
    found = [(widths[name], dtypes.get(name, hidden.dtype)) for name in reads.split()]
    return [hidden.new_empty(hidden.shape), *(hidden.new_empty((batch, length, *w), dtype=dtype) for w, dtype in found)]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if inference_kernels(x) == TRITON:
        return triton_kernels().whole.add_rms_norm(x, residual, weight, eps)
    if kernels_for(x) is C and x.dtype in MIXED and residual.dtype == torch.float32:
        return native.add_and_norm(x, residual, weight, eps)
    total = (residual + x).contiguous()
    return F.rms_norm(total, weight.shape, weight.to(total.dtype), eps).to(x.dtype), total


def _norm_shapes(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    del weight, eps
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))


_lib.impl("mixer", _mixer, "CompositeExplicitAutograd")
_lib.impl("add_rms_norm", _add_rms_norm, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::mixer", mixer_shapes, lib=_lib)
torch.library.register_fake("mtrkit::add_rms_norm", _norm_shapes, lib=_lib)
refuse_derivatives("mixer")
refuse_derivatives("add_rms_norm")
_run_mixer, _run_add_rms_norm = torch.ops.mtrkit.mixer.default, torch.ops.mtrkit.add_rms_norm.default


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last axis of ``residual + x`` (..., D), times ``weight`` (D,), and that sum.

    The norm is in the dtype of x, the sum in the wider one of the two.
    """
    if no_tracing(x):
        return _add_rms_norm(x, residual, weight, eps)
    return _run_add_rms_norm(x, residual, weight, eps)


def mixer(
    hidden: Tensor, weights: MixerWeights, reads: frozenset[str] = frozenset(), runs: Runs | None = None
) -> tuple[Tensor, Signals]:
    """Run a mixer for which :func:`mtrkit.scan.fastpath.can_mix`: its output (B, L, D), and what is read."""
    names = in_order(reads)
    if no_tracing(hidden):
        out, *found = _mix(hidden, weights, names, runs)
    else:
        flat = flatten(weights)
        lengths, positions = (None, 0) if runs is None else runs
        arguments = (weights.in_proj, weights.out_proj, flat, weights.halve, " ".join(names), lengths, positions)
        out, *found = _run_mixer(hidden, *arguments)
    return out, signals_by_name(names, found)


def mix_chosen(hidden: Tensor, weights: MixerWeights, gates: Tensor) -> Tensor:
    """Mixer output (B, L, D), each scan run for the samples whose gate is 1, in one call of the compiled library.

    Args:
        hidden: (B, L, D).
        weights: Of a mixer for which :func:`mtrkit.scan.fastpath.can_mix_alone`.
        gates: (B, 2), forward and backward.
    """
    left_out = (gates < 0.5).to(torch.int64).T
    some = (gates > 0.5).any(dim=1).nonzero().flatten()
    if len(some) == len(hidden):
        return native.mix(hidden, weights, left_out=left_out)[0]
    out = torch.zeros_like(hidden)
    if len(some):
        out[some] = native.mix(hidden[some], weights, left_out=left_out[:, some])[0]
    return out


def run_block(
    x: Tensor,
    residual: Tensor,
    block: BlockWeights,
    reads: frozenset[str] = frozenset(),
    runs: Runs | None = None,
) -> tuple[Tensor, Tensor, Signals]:
    """:func:`mixer` of the norm of :func:`add_rms_norm`, outside of tracing.

    Returns:
        The mixer's output, the sum before its norm, and what is read of it.
    """
    names = in_order(reads)
    if inference_kernels(x) == TRITON:
        normed, total = _add_rms_norm(x, residual, block.norm, block.eps)
        out, *found = _mix(normed, block.mixer, names, runs)
        return out, total, signals_by_name(names, found)
    with Chain() as chain:
        mixer, total = append_placed(chain, x, residual, [native.place_block(block, x.dtype)], names, runs, x.dtype)
    out, *found = mixer.results(names)
    return out, total, signals_by_name(names, found)


def append_placed(
    chain: Chain,
    x: Tensor,
    residual: Tensor | None,
    blocks: Sequence[native.PlacedBlock],
    names: Sequence[str],
    runs: Runs | None,
    dtype: torch.dtype,
) -> tuple[native.Appended, Tensor]:
    """One :func:`run_block` after the other as jobs of a chain; the signals of these names are those of the last.

    In the chain tokens are float32, with the values that they would have in ``dtype``.
    """
    return native.append_blocks(chain, x, residual, blocks, names, None if runs is None else runs.lengths, dtype)


def signals_by_name(names: Sequence[str], found: Sequence[Tensor]) -> Signals:
    """Signals from their names and values."""
    return Signals(**dict(zip(names, found, strict=True)))


def in_order(reads: frozenset[str]) -> list[str]:
    """The names of signals in the order in which mixers give them."""
    return [name for name in Signals._fields if name in reads] if reads else []
