"""A whole mixer as one operator, for inference where nothing but Δ, B and C is looked at."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.compiler import constant_result
from mtrkit.scan import ops, pipeline
from mtrkit.scan.dispatch import backend_for
from mtrkit.scan.library import current_level, library
from mtrkit.scan.weights import DirectionWeights

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define(
    "mixer(Tensor hidden, Tensor in_proj, Tensor out_proj, Tensor[] conv_weight, Tensor?[] conv_bias, "
    "Tensor[] x_proj, Tensor[] dt_weight, Tensor[] dt_bias, Tensor[] A, Tensor[] D) -> (Tensor, Tensor)"
)


@constant_result
def fuses(device: str, dtype: torch.dtype) -> bool:
    """Whether the operator is the fastest way: for 16-bit numbers a CPU may have matrix units, which torch knows."""
    compiled = device == "cpu" and dtype == torch.float32 and not library().missing
    return compiled and current_level() > 0 and backend_for(device) == "native"


def _mixer(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, *weights: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Mixer output for normalised tokens (B, L, D), and what x_proj gave, (directions, B, L, R + 2N).

    Each of ``weights`` has an entry per direction, in the order of :class:`mtrkit.scan.DirectionWeights`.
    """
    run = pipeline.mix if ops.runs_compiled(hidden) and hidden.dtype == torch.float32 else _step_by_step
    return run(hidden, in_proj, out_proj, [DirectionWeights._make(way) for way in zip(*weights, strict=True)])


def _step_by_step(
    hidden: Tensor, in_proj: Tensor, out_proj: Tensor, directions: Sequence[DirectionWeights]
) -> tuple[Tensor, Tensor]:
    """The same with the single operators, where the compiled library cannot run."""
    x, z = F.linear(hidden, in_proj).transpose(1, 2).chunk(2, dim=1)
    y, seen = torch.zeros_like(x), []
    for i, (conv_weight, conv_bias, x_proj, dt_weight, dt_bias, A, D) in enumerate(directions):
        u = ops.causal_conv1d(x, conv_weight.flatten(1), conv_bias, True, i == 1)
        projected = F.linear(u.transpose(1, 2), x_proj)
        seen.append(projected)
        dt, B, C = projected.split([dt_weight.shape[1], A.shape[1], A.shape[1]], dim=-1)
        delta, B, C = F.linear(dt, dt_weight).transpose(1, 2), B.transpose(1, 2)[:, None], C.transpose(1, 2)[:, None]
        y += ops.selective_scan(u, delta, A, B, C, D, z, dt_bias, True, i == 1, False)[0]
    return F.linear(y.transpose(1, 2), out_proj), torch.stack(seen)


def _shape(
    hidden: Tensor,
    in_proj: Tensor,
    out_proj: Tensor,
    conv_weight: object,
    conv_bias: object,
    x_proj: list[Tensor],
    *_: object,
) -> tuple[Tensor, Tensor]:
    seen = (len(x_proj), *hidden.shape[:2], x_proj[0].shape[0])
    return hidden.new_empty(hidden.shape), hidden.new_empty(seen)


_lib.impl("mixer", _mixer, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::mixer", _shape, lib=_lib)

mixer = torch.ops.mtrkit.mixer.default
