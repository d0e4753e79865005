"""A whole mixer, and the norm before it, as one operator each, for inference where nobody looks inside."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native import mixer as native_mixer
from mtrkit.native.library import BLOCK
from mtrkit.native.mixer import seen_shape
from mtrkit.native.weights import DirectionWeights, MixerWeights, decay_rates
from mtrkit.scan import operators
from mtrkit.scan.fastpath import unwatched

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define(
    "mixer(Tensor hidden, Tensor in_proj, Tensor out_proj, Tensor[] directions, float scale, str reads) -> Tensor[]"
)
_lib.define("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")


def _mixer(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, directions: list[Tensor], scale: float, reads: str
) -> list[Tensor]:
    """The mixer, the directions' weights one behind the other, and so the names of what is read."""
    return _mix_for(hidden)(hidden, in_proj, out_proj, _apart(directions), scale, reads.split())


def _mix_for(hidden: Tensor) -> Callable[..., list[Tensor]]:
    """:func:`mtrkit.native.mixer.mix`, or what stands in for it where the compiled library cannot run."""
    return native_mixer.mix if operators.runs_compiled(hidden) and hidden.dtype == torch.float32 else _step_by_step


def _together(directions: Sequence[DirectionWeights]) -> list[Tensor]:
    """One direction after the other; an empty tensor where there is none, as tracing knows no list with gaps."""
    return [way.D.new_empty(0) if weight is None else weight for way in directions for weight in way]


def _apart(weights: list[Tensor]) -> list[DirectionWeights]:
    """What :func:`_together` put together."""
    found, count = [weight if weight.numel() else None for weight in weights], len(DirectionWeights._fields)
    return [DirectionWeights(*found[i : i + count]) for i in range(0, len(found), count)]  # type: ignore[arg-type]


def _step_by_step(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    scale: float,
    reads: Sequence[str],
) -> list[Tensor]:
    """:func:`mtrkit.native.mixer.mix` with the single operators."""
    x, z = F.linear(hidden, in_proj).transpose(1, 2).chunk(2, dim=1)
    y, total, seen = torch.zeros_like(x), torch.zeros_like(x), []
    gate = None if "y" in reads else z
    for i, (conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D) in enumerate(directions):
        u = operators.causal_conv1d(x, conv_weight.flatten(1), conv_bias, True, i == 1)
        seen.append(F.linear(u.transpose(1, 2), x_proj))
        dt, B, C = seen[-1].split([dt_weight.shape[1], A_log.shape[1], A_log.shape[1]], dim=-1)
        delta, B, C = F.linear(dt, dt_weight).transpose(1, 2), B.transpose(1, 2)[:, None], C.transpose(1, 2)[:, None]
        y += operators.selective_scan(
            u, delta, decay_rates(A_log), B, C, D.float(), gate, dt_bias, True, i == 1, False
        )[0]
        total += operators.delta_softplus(delta, dt_bias)
    blocks = F.pad(total, (0, 0, 0, -total.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK)).sum(dim=2)
    deltas = {"delta": total.transpose(1, 2), "delta_sums": blocks}
    found = deltas | {"projected": torch.stack(seen), "y": y.transpose(1, 2)}
    gated = y if gate is not None else y * F.silu(z)
    return [F.linear(gated.transpose(1, 2), out_proj * scale), *(found[name].contiguous() for name in reads)]


def _shapes(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, directions: list[Tensor], scale: float, reads: str
) -> list[Tensor]:
    ways, tokens, inner = _apart(directions), hidden.shape[:2], out_proj.shape[1]
    projected = (len(ways), *tokens, ways[0].x_proj.shape[0])
    found = [projected if name == "projected" else seen_shape(name, tokens, inner) for name in reads.split()]
    return [hidden.new_empty(shape) for shape in (hidden.shape, *found)]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if operators.runs_compiled(x) and x.dtype == residual.dtype == torch.float32:
        return native_mixer.add_and_norm(x, residual, weight, eps)
    total = residual + x
    return F.rms_norm(total, weight.shape, weight.to(total.dtype), eps), total


def _norm_shapes(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    del weight, eps
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=dtype)


_lib.impl("mixer", _mixer, "CompositeExplicitAutograd")
_lib.impl("add_rms_norm", _add_rms_norm, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::mixer", _shapes, lib=_lib)
torch.library.register_fake("mtrkit::add_rms_norm", _norm_shapes, lib=_lib)
_run_mixer, _run_add_rms_norm = torch.ops.mtrkit.mixer.default, torch.ops.mtrkit.add_rms_norm.default


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last axis of ``residual + x`` (..., D), times ``weight`` (D,), and that sum."""
    if unwatched(x):
        return _add_rms_norm(x, residual, weight, eps)
    return _run_add_rms_norm(x, residual, weight, eps)


def mixer(hidden: Tensor, weights: MixerWeights, reads: Sequence[str] = ()) -> list[Tensor]:
    """Run a mixer without biases outside its directions, where :func:`mtrkit.scan.fastpath.inference_fuses`.

    Returns:
        The mixer output (B, L, D), and what is read, in its order: ``"projected"``, what x_proj gave, (directions,
        B, L, R + 2N); either ``"delta"``, the directions' Δ, summed, (B, L, E), or ``"delta_sums"``, its sums over
        blocks of channels, (B, blocks, L); and ``"y"``, the sum of the scans before the gate, (B, L, E).
    """
    scale = _scale(weights)
    if unwatched(hidden):
        return _mix_for(hidden)(hidden, weights.in_proj, weights.out_proj, weights.directions, scale, reads)
    return _run_mixer(hidden, weights.in_proj, weights.out_proj, _together(weights.directions), scale, " ".join(reads))


def norm_and_mixer(
    x: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, weights: MixerWeights
) -> tuple[Tensor, Tensor]:
    """:func:`mixer` of the norm of :func:`add_rms_norm`, and the sum: to the same bits, for calls nobody watches."""
    outer = weights.in_proj, weights.out_proj
    return native_mixer.norm_and_mix(x, residual, norm_weight, eps, *outer, weights.directions, _scale(weights))


def _scale(weights: MixerWeights) -> float:
    """Halving, which gives the same bits on a weight as on the sum."""
    return 0.5 if weights.halve else 1.0
