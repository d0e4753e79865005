"""A whole mixer, and the norm before it, as one operator each, for inference where nobody looks inside."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.compiler import constant_result
from mtrkit.scan import ops, pipeline
from mtrkit.scan.dispatch import backend_for
from mtrkit.scan.library import BLOCK, current_level, library
from mtrkit.scan.weights import DirectionWeights, MixerWeights, decay_rates

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define(
    "mixer(Tensor hidden, Tensor in_proj, Tensor out_proj, Tensor[] conv_weight, Tensor?[] conv_bias, "
    "Tensor[] x_proj, Tensor[] dt_weight, Tensor[] dt_bias, Tensor[] A_log, Tensor[] D, float scale, "
    "str[] reads) -> Tensor[]"
)
_lib.define("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")


@constant_result
def fuses(device: str, dtype: torch.dtype) -> bool:
    """Whether the operator is the fastest way: for 16-bit numbers a CPU may have matrix units, which torch knows."""
    compiled = device == "cpu" and dtype == torch.float32 and not library().missing
    return compiled and current_level() > 0 and backend_for(device) == "native"


def _mixer(hidden: Tensor, in_proj: Tensor, out_proj: Tensor, *weights: Any) -> list[Tensor]:
    """What :func:`mtrkit.scan.pipeline.mix` gives.

    The weights have an entry per direction, in the order of :class:`mtrkit.scan.DirectionWeights`; the
    other arguments follow.
    """
    per_direction, options = weights[:7], weights[7:]
    run = pipeline.mix if ops.runs_compiled(hidden) and hidden.dtype == torch.float32 else _step_by_step
    directions = [DirectionWeights._make(way) for way in zip(*per_direction, strict=True)]
    return run(hidden, in_proj, out_proj, directions, *options)


def _step_by_step(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    directions: Sequence[DirectionWeights],
    scale: float,
    reads: Sequence[str],
) -> list[Tensor]:
    """The same with the single operators, where the compiled library cannot run."""
    x, z = F.linear(hidden, in_proj).transpose(1, 2).chunk(2, dim=1)
    y, total, seen = torch.zeros_like(x), torch.zeros_like(x), []
    for i, (conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A_log, D) in enumerate(directions):
        u = ops.causal_conv1d(x, conv_weight.flatten(1), conv_bias, True, i == 1)
        seen.append(F.linear(u.transpose(1, 2), x_proj))
        dt, B, C = seen[-1].split([dt_weight.shape[1], A_log.shape[1], A_log.shape[1]], dim=-1)
        delta, B, C = F.linear(dt, dt_weight).transpose(1, 2), B.transpose(1, 2)[:, None], C.transpose(1, 2)[:, None]
        y += ops.selective_scan(u, delta, decay_rates(A_log), B, C, D.float(), z, dt_bias, True, i == 1, False)[0]
        total += ops.delta_softplus(delta, dt_bias)
    blocks = F.pad(total, (0, 0, 0, -total.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK)).sum(dim=2)
    found = {"projected": torch.stack(seen), "delta": total.transpose(1, 2), "delta_sums": blocks}
    return [F.linear(y.transpose(1, 2), out_proj * scale), *(found[name].contiguous() for name in reads)]


def _shapes(hidden: Tensor, in_proj: Tensor, out_proj: Tensor, *weights: Any) -> list[Tensor]:
    x_proj, reads = weights[2], weights[-1]
    projected = (len(x_proj), *hidden.shape[:2], x_proj[0].shape[0])
    tokens, inner = hidden.shape[:2], out_proj.shape[1]
    found = [projected if name == "projected" else pipeline.delta_shape(name, tokens, inner) for name in reads]
    return [hidden.new_empty(shape) for shape in (hidden.shape, *found)]


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if ops.runs_compiled(x) and x.dtype == residual.dtype == torch.float32:
        return pipeline.add_and_norm(x, residual, weight, eps)
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


def inference_fuses(x: Tensor) -> bool:
    """Whether :func:`fuses` for this tensor, and nobody wants a derivative or another precision."""
    if torch.is_grad_enabled() or not fuses(x.device.type, x.dtype):
        return False
    return not torch.is_autocast_enabled(x.device.type)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last axis of ``residual + x`` (..., D), times ``weight`` (D,), and that sum."""
    return torch.ops.mtrkit.add_rms_norm.default(x, residual, weight, eps)


def mixer(hidden: Tensor, weights: MixerWeights, reads: Sequence[str] = ()) -> list[Tensor]:
    """Run a mixer that :func:`fuses` and has no biases outside its directions.

    Returns:
        The mixer output (B, L, D), and what is read, in its order: ``"projected"``, what x_proj gave, (directions,
        B, L, R + 2N); and either ``"delta"``, the directions' Δ, summed, (B, L, E), or ``"delta_sums"``, its sums over
        blocks of channels, (B, blocks, L).
    """
    per_direction = map(list, zip(*weights.directions, strict=True))
    scale = 0.5 if weights.halve else 1.0  # on the weight gives the same bits as on the sum
    return torch.ops.mtrkit.mixer.default(hidden, weights.in_proj, weights.out_proj, *per_direction, scale, list(reads))
