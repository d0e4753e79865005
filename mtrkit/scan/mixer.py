"""The Mamba mixer, one or two scan directions, with every intermediate signal in reach.

The fused kernels of the official repositories hide Δ, B, C and y inside one call. Here the mixer is the
plain sequence projection → causal convolution → selective scan → gate → projection, which calls the same
convolution and scan kernels and gives the same output, so that a token-reduction method may look at
whatever it scores by without anything being computed twice. Where nobody looks, one operator does it all on a CPU.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), section 3.4; two directions: Zhu et al., "Vision Mamba"
(arXiv:2401.09417), algorithm 1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.weights import DirectionWeights, MixerWeights, decay_rates
from mtrkit.scan import fused
from mtrkit.scan.conv import causal_conv1d
from mtrkit.scan.dispatch import length_last, scan_op
from mtrkit.scan.fastpath import inference_fuses
from mtrkit.scan.operators import delta_softplus
from mtrkit.types import Gaps


class Signals(NamedTuple):
    """What a scorer may want to see of a mixer, aligned with the tokens and summed over directions."""

    delta: Tensor | None = None  # (B, L, E), after bias and softplus
    delta_mean: Tensor | None = None  # (B, L), its mean over the channels
    ssm_B: Tensor | None = None  # (B, L, N)
    ssm_C: Tensor | None = None  # (B, L, N)
    y: Tensor | None = None  # (B, L, E), scan output with the skip term, before the gate
    keys: Tensor | None = None  # (B, L, D / heads), of attention, mean over the heads
    attention: Tensor | None = None  # (B, L, 1), of the class token to each token, mean over the heads


_DELTAS = frozenset({"delta", "delta_mean"})
_CACHE_BYTES = 5 << 19  # of x and z at a time: what the second-level caches of two cores hold


def mixer_forward(
    hidden: Tensor, weights: MixerWeights, reads: frozenset[str] = frozenset(), gaps: Gaps | None = None
) -> tuple[Tensor, Signals]:
    """Run a mixer on normalised tokens.

    Args:
        hidden: (B, L, D).
        weights: The mixer's parameters.
        reads: Names of the :class:`Signals` to return; the others stay ``None``.
        gaps: Tokens that were dropped in front of each one: the scan's state decays over them as if they were
            there with no input, by their Δ, or by that of a token without content where only their number is
            given. Default: the state is carried on.

    Returns:
        The mixer output (B, L, D) and the signals.
    """
    if gaps is None and _fuses(hidden, weights):
        return _mix_fused(hidden, weights, reads)
    parts = _parts(hidden, weights)
    if parts == 1:
        return _mix(hidden, weights, reads, gaps)
    cut = (
        [None] * parts if gaps is None else [Gaps(*pair) for pair in zip(*(g.chunk(parts) for g in gaps), strict=True)]
    )
    pairs = zip(hidden.chunk(parts), cut, strict=False)  # chunk may make fewer than it was asked for
    outputs, signals = zip(*(_mix(part, weights, reads, gap) for part, gap in pairs), strict=True)
    return torch.cat(outputs), Signals(*(_join(found) for found in zip(*signals, strict=True)))


def _mix_fused(hidden: Tensor, weights: MixerWeights, reads: frozenset[str]) -> tuple[Tensor, Signals]:
    delta = "delta" if "delta" in reads else "delta_sums"
    wanted = {"projected": reads & {"ssm_B", "ssm_C"}, delta: reads & _DELTAS, "y": "y" in reads}
    names = tuple(name for name, asked in wanted.items() if asked)
    out, *found = fused.mixer(hidden, weights, names)
    seen, state = dict(zip(names, found, strict=True)), weights.directions[0].A_log.shape[1]
    signals = Signals(
        seen["delta"] if "delta" in reads else None,
        seen[delta].sum(dim=2 if delta == "delta" else 1) / weights.out_proj.shape[1]
        if "delta_mean" in reads
        else None,
        seen["projected"][..., -2 * state : -state].sum(dim=0) if "ssm_B" in reads else None,
        seen["projected"][..., -state:].sum(dim=0) if "ssm_C" in reads else None,
        seen.get("y"),
    )
    return out, signals


def _fuses(hidden: Tensor, weights: MixerWeights) -> bool:
    """Whether one operator can do it all: no biases of the projections, and what every fused operator asks for."""
    return weights.in_bias is None and weights.out_bias is None and inference_fuses(hidden)


def _parts(hidden: Tensor, weights: MixerWeights) -> int:
    """Into how many parts to cut the batch, so that what passes between the kernels stays in a CPU's cache."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or length_last(hidden.device):
        return 1
    between = hidden.shape[0] * hidden.shape[1] * weights.in_proj.shape[0] * hidden.element_size()
    return max(1, min(hidden.shape[0], round(between / _CACHE_BYTES)))


def _join(found: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [signal for signal in found if signal is not None]
    return torch.cat(present) if present else None


def _mix(hidden: Tensor, weights: MixerWeights, reads: frozenset[str], gaps: Gaps | None) -> tuple[Tensor, Signals]:
    x, z = _project_in(hidden, weights).chunk(2, dim=1)
    # A signal y has to be seen before the gate, so the gate moves out of the kernel when somebody reads it; and
    # the scan over gaps has its skip term outside.
    gate = None if "y" in reads or gaps is not None else z
    ahead, behind = (None, None) if gaps is None else gaps
    y, signals = _scan_direction(x, gate, weights.directions[0], False, reads, ahead)
    if len(weights.directions) > 1:
        backward, found = _scan_direction(x, gate, weights.directions[1], True, reads, behind)
        y, signals = _add(y, backward), _add_signals(signals, found)
    if gate is None:
        seen = y.transpose(1, 2) if "y" in reads else None
        signals = Signals(signals.delta, signals.delta_mean, signals.ssm_B, signals.ssm_C, seen)
        y = y * F.silu(z)
    # Halving the weights instead of the sum gives the same bits and touches a smaller tensor.
    out_proj = weights.out_proj * 0.5 if weights.halve else weights.out_proj
    return F.linear(y.transpose(1, 2), out_proj, weights.out_bias), signals


def _project_in(hidden: Tensor, weights: MixerWeights) -> Tensor:
    """Return x and z as one (B, 2E, L) tensor in the memory order that the scan backend reads fastest."""
    if not length_last(hidden.device):
        return F.linear(hidden, weights.in_proj, weights.in_bias).transpose(1, 2)
    xz = torch.matmul(weights.in_proj, hidden.transpose(1, 2))
    return xz if weights.in_bias is None else xz + weights.in_bias.to(xz.dtype)[:, None]


def _scan_direction(
    x: Tensor,
    z: Tensor | None,
    weights: DirectionWeights,
    reverse: bool,
    reads: frozenset[str],
    gap: Tensor | None,
) -> tuple[Tensor, Signals]:
    """One direction on x (B, E, L): the scan's output (B, E, L) and this direction's signals."""
    rank, state = weights.dt_weight.shape[1], weights.A_log.shape[1]
    u = causal_conv1d(x, weights.conv_weight, weights.conv_bias, reverse=reverse)
    projected = F.linear(u.transpose(1, 2), weights.x_proj)  # (B, L, R + 2N)
    dt, ssm_B, ssm_C = projected.split([rank, state, state], dim=-1)
    delta = _expand_delta(dt, weights)
    B, C = ssm_B.transpose(1, 2), ssm_C.transpose(1, 2)
    ready = bool(reads & _DELTAS) or gap is not None
    if ready:  # softplus here instead of in the kernel: the scan then takes Δ as it is
        delta = delta_softplus(delta, weights.dt_bias)
    if gap is not None:
        y = _scan_over(gap, u, delta, B, C, weights, reverse)
    else:
        bias = None if ready else weights.dt_bias.float()
        y, _ = scan_op(u, delta, decay_rates(weights.A_log), B, C, weights.D.float(), z, bias, not ready, reverse)
    found = Signals(
        delta.transpose(1, 2) if "delta" in reads else None,
        delta.float().mean(dim=1) if "delta_mean" in reads else None,
        ssm_B if "ssm_B" in reads else None,
        ssm_C if "ssm_C" in reads else None,
    )
    return y, found


def _scan_over(
    gap: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, weights: DirectionWeights, reverse: bool
) -> Tensor:
    """A scan whose state decays by Δ + gap at each token while the input enters by Δ alone.

    The kernel knows one time step, so it gets the longer one, and less of the input in proportion.
    """
    passed = gap.transpose(1, 2).to(delta.dtype)
    if passed.shape[1] == 1:
        passed = passed * F.softplus(weights.dt_bias.float()).to(delta.dtype)[:, None]
    total = delta + passed
    share = delta / total.clamp(min=torch.finfo(total.dtype).tiny)
    y, _ = scan_op(u * share, total, decay_rates(weights.A_log), B, C, None, None, None, False, reverse)
    return y + weights.D.to(y.dtype)[:, None] * u


def _expand_delta(dt: Tensor, weights: DirectionWeights) -> Tensor:
    """Δ before bias and softplus, (B, E, L), in the memory order of :func:`_project_in`."""
    if length_last(dt.device):
        return torch.matmul(weights.dt_weight, dt.transpose(1, 2))
    return F.linear(dt, weights.dt_weight).transpose(1, 2)


def _add_signals(total: Signals, found: Signals) -> Signals:
    """Sum two directions' signals; what is missing on one side is taken from the other."""
    return Signals(
        _add_present(total.delta, found.delta),
        _add_present(total.delta_mean, found.delta_mean),
        _add_present(total.ssm_B, found.ssm_B),
        _add_present(total.ssm_C, found.ssm_C),
    )


def _add_present(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else _add(a, b)


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum, in the memory of ``a`` where no derivative will ask for it: ``a`` is ours and not read again."""
    return a + b if torch.is_grad_enabled() else a.add_(b)
