"""A whole mixer for inference: torch's products, and between them kernels that take both directions in one launch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.layout import empty_as, expect
from mtrkit.native.weights import DirectionWeights, MixerWeights
from mtrkit.triton import conv, scan
from mtrkit.triton.kernels import mixer as kernels
from mtrkit.triton.launch import check_kind, launch, power_of_two

TOKENS, CHANNELS = 16, 64  # of a tile
ROWS, COLUMNS = 8, 128  # of a tile that runs over all channels
ALIGNED = 16  # numbers: what Triton asks of strides before it loads several at a time


def softplus_forward(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus(delta + bias) for delta (B, E, L) and bias (E,)."""
    check_kind(delta)
    batch, channels, length = delta.shape
    if bias is not None:
        expect("bias", bias, delta.shape[1:2])
        bias = bias.contiguous()
    out, block = empty_as(delta), min(CHANNELS, power_of_two(channels))
    programs = batch * -(-length // TOKENS) * -(-channels // block)
    arguments = (delta, bias, out, batch, length, channels, *delta.stride(), *out.stride())
    launch(kernels.delta_softplus, programs, delta, arguments, warps=4, BLOCK_T=TOKENS, BLOCK_E=block)
    return out


def mix(
    hidden: Tensor, weights: MixerWeights, reads: Sequence[str] = (), lengths: Tensor | None = None
) -> list[Tensor]:
    """Mixer output (B, L, D) for normalised tokens (B, L, D), and the signals that are read, in their order.

    Args:
        hidden: (B, L, D).
        weights: Without biases outside of the directions; the second direction runs backward.
        reads: Names of fields of :class:`mtrkit.types.Signals`, but for those of attention.
        lengths: (B, L) int64, how many positions each token lasts; their outputs are means over these. Default: one.
    """
    check_kind(hidden)
    ways, inner = weights.directions, weights.out_proj.shape[1]
    x, z = F.linear(hidden, weights.in_proj).split(inner, dim=-1)
    u = x.new_empty((len(ways), *x.shape))  # (W, B, L, E), as everything between the products
    taps = [(way.conv_weight.squeeze(1), way.conv_bias) for way in ways]
    conv.launch_forward(x.transpose(1, 2), u.transpose(2, 3), taps, lengths)
    rank, states = ways[0].dt_weight.shape[1], ways[0].A_log.shape[1]
    projected = _multiply(u, [way.x_proj for way in ways], -rank % ALIGNED)
    delta = _multiply(projected[..., :rank], [way.dt_weight for way in ways])
    ssm_B, ssm_C = projected[..., rank : rank + states], projected[..., rank + states :]
    y = torch.empty_like(u)
    scan.launch_forward(
        u.transpose(2, 3),
        delta.transpose(2, 3),
        ssm_B.transpose(2, 3).unsqueeze(2),
        ssm_C.transpose(2, 3).unsqueeze(2),
        None,
        y.transpose(2, 3),
        ways=[scan.Way(way.A_log, way.D, way.dt_bias) for way in ways],
        lengths=lengths,
        log_A=True,
    )
    gated, ungated = _gate(y, z, 0.5 if weights.halve else 1.0, "y" in reads)
    signals = {"y": ungated, **_sum_deltas(delta, ways, reads)}
    found = {name: signal for name, signal in signals.items() if signal is not None}
    found |= {name: part.sum(0) for name, part in (("ssm_B", ssm_B), ("ssm_C", ssm_C)) if name in reads}
    return [F.linear(gated, weights.out_proj), *(found[name] for name in reads)]


def _multiply(x: Tensor, weights: Sequence[Tensor], before: int = 0) -> Tensor:
    """(W, B, L, C) times a weight (N, C) each: (W, B, L, N), without putting the weights side by side.

    ``before`` is how many columns are left out in front of each row, which then has a multiple of ALIGNED in all, so
    that a column that lies where it should can be loaded sixteen bytes at a time.
    """
    ways, batch, length, width = x.shape
    columns = weights[0].shape[0]
    whole = before + columns + (-(before + columns) % ALIGNED if before else 0)
    out = x.new_empty((ways, batch * length, whole))[..., before : before + columns]
    rows = x.as_strided((ways, batch * length, width), (x.stride(0), x.stride(2), 1))
    for way, weight in enumerate(weights):
        torch.mm(rows[way], weight.t(), out=out[way])
    return out.unflatten(1, (batch, length))


def _gate(y: Tensor, z: Tensor, scale: float, wants_sum: bool) -> tuple[Tensor, Tensor | None]:
    """The sum of y (W, B, L, E) over the directions times SiLU(z) times ``scale``, and the sum alone."""
    ways, batch, length, inner = y.shape
    gated = torch.empty_like(y[0])
    ungated = torch.empty_like(gated) if wants_sum else None
    block = min(CHANNELS, power_of_two(inner))
    arguments = (y, z, gated, ungated, batch * length, length, inner, scale, z.stride(0), z.stride(1))
    programs = -(-batch * length // TOKENS) * -(-inner // block)
    launch(kernels.gate, programs, y, arguments, warps=4, WAYS=ways, BLOCK_R=TOKENS, BLOCK_E=block)
    return gated, ungated


def _sum_deltas(delta: Tensor, ways: Sequence[DirectionWeights], reads: Sequence[str]) -> dict[str, Tensor | None]:
    """Those of Δ (B, L, E) and its mean (B, L) that are read, summed over the directions."""
    if "delta" not in reads and "delta_mean" not in reads:
        return {}
    count, batch, length, inner = delta.shape
    sums = torch.empty_like(delta[0]) if "delta" in reads else None
    means = delta.new_empty((batch, length), dtype=torch.float32) if "delta_mean" in reads else None
    biases = (ways[0].dt_bias.contiguous(), ways[-1].dt_bias.contiguous())
    arguments = (delta, *biases, sums, means, batch * length, inner)
    block = min(COLUMNS, power_of_two(inner))
    launch(
        kernels.sum_deltas,
        -(-batch * length // ROWS),
        delta,
        arguments,
        warps=4,
        WAYS=count,
        BLOCK_R=ROWS,
        BLOCK_E=block,
    )
    return {"delta": sums, "delta_mean": means}
