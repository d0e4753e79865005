"""The mixer operator by operator: every intermediate is in reach, and every layer is called as it is.

A layer whose weights say all is computed from them, in the order of memory that the scan reads fastest. Any other
layer, such as one with an adapter, hooks or quantised weights, is called as the module that it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrkit.errors import InputError
from mtrkit.native.weights import DirectionWeights, MixerWeights, decay_rates, wide
from mtrkit.scan.dispatch import length_last, stepping_kernels, under_transform
from mtrkit.scan.fastpath import are_plain, plain_tensors
from mtrkit.scan.gates import choose
from mtrkit.scan.interface import causal_conv1d, delta_softplus, selective_scan
from mtrkit.scan.run_operators import convolve_runs, scan_runs
from mtrkit.scan.runs import Written, write_out
from mtrkit.types import Gaps, Gating, Runs, Scan, Signals

_DELTAS = frozenset({"delta", "delta_mean"})


class DirectionLayers(NamedTuple):
    """The layers of one scan direction, where their weights do not say all; E, N, R, K as in DirectionWeights."""

    conv: Any  # of (B, E, L), padded by K − 1
    x_proj: Callable[[Tensor], Tensor]  # E to R + 2N, a module unless norms follow it
    dt_proj: nn.Module  # R to E, with the bias of Δ
    A_log: Tensor
    D: Tensor


class MixerLayers(NamedTuple):
    """The layers of a whole mixer."""

    in_proj: nn.Module
    out_proj: nn.Module
    directions: tuple[DirectionLayers, ...]
    halve: bool = False
    norm: Callable[[Tensor], Tensor] | None = None  # of the sum of the scans (B, L, E), in front of the gate


Parts = MixerWeights | MixerLayers
Direction = DirectionWeights | DirectionLayers


def mix_gated(hidden: Tensor, parts: Parts, gating: Gating) -> tuple[Tensor, Signals]:
    """Run all scans of a mixer, and count those outputs and tokens that ``gating`` says.

    x is multiplied by the mask before the convolution, and what the convolution makes of it again, as its bias and its
    reach would fill the masked places; z, norm and projections are not.

    Source: DyVM, arXiv:2504.04787.
    """
    projected = _project_in(hidden, parts)
    gates = choose(projected.transpose(1, 2), gating)
    mask = None if gating.mask is None else gating.mask.transpose(1, 2).to(projected.dtype)
    x, z = projected.chunk(2, dim=1)
    x = x if mask is None else x * mask
    total = None
    for number in range(len(parts.directions)):
        y, _ = _scan_direction(x, z, parts.directions[number], number == 1, frozenset(), None, None, mask)
        y = y if gates is None else y * gates[:, number, None, None].to(y.dtype)
        total = y if total is None else total + y
    assert total is not None
    return _project_out(total.transpose(1, 2), parts), Signals(gates=gates)


def mix(
    hidden: Tensor, parts: Parts, reads: frozenset[str], gaps: Gaps | None = None, runs: Runs | None = None
) -> tuple[Tensor, Signals]:
    """Run a mixer; arguments and results of :func:`mtrkit.scan.mixer_forward`."""
    x, z = _project_in(hidden, parts).chunk(2, dim=1)
    norm = parts.norm if isinstance(parts, MixerLayers) else None
    # A signal y has to be seen before the gate, so the gate moves out of the kernel if it is read; and the scan
    # over gaps has its skip term outside. A norm comes between the two.
    gate = None if "y" in reads or gaps is not None or norm is not None else z
    ahead, behind = (None, None) if gaps is None else gaps
    # As many positions as tokens: every token lasts one.
    time = None if runs is None or runs.positions == hidden.shape[1] else _time(runs, parts, x)
    y, signals = _scan_direction(x, gate, parts.directions[0], False, reads, ahead, time)
    if len(parts.directions) > 1:
        backward, found = _scan_direction(x, gate, parts.directions[1], True, reads, behind, time)
        y, signals = _add(y, backward), _add_signals(signals, found)
    if gate is None:
        if "y" in reads:  # written out: torch 2.6's compiler does not follow `_replace`
            signals = Signals(signals.delta, signals.delta_mean, signals.ssm_B, signals.ssm_C, y.transpose(1, 2))
        y = y if norm is None else norm(y.transpose(1, 2)).transpose(1, 2)
        y = y * F.silu(z)
    return _project_out(y.transpose(1, 2), parts), signals


def _project_in(hidden: Tensor, parts: Parts) -> Tensor:
    """Return x and z as one (B, 2E, L) tensor, in the memory order that the scan backend reads fastest."""
    if isinstance(parts, MixerLayers):
        return parts.in_proj(hidden).transpose(1, 2)
    if not length_last(hidden.device):
        return F.linear(hidden, parts.in_proj, parts.in_bias).transpose(1, 2)
    xz = torch.matmul(parts.in_proj, hidden.transpose(1, 2))
    return xz if parts.in_bias is None else xz + parts.in_bias.to(xz.dtype)[:, None]


def _project_out(y: Tensor, parts: Parts) -> Tensor:
    """(B, L, E) to (B, L, D)."""
    if isinstance(parts, MixerLayers):
        return parts.out_proj(y * 0.5 if parts.halve else y)
    # Halving the weights instead of the sum gives the same bits and touches a smaller tensor.
    return F.linear(y, parts.out_proj * 0.5 if parts.halve else parts.out_proj, parts.out_bias)


def _scan_direction(
    x: Tensor,
    z: Tensor | None,
    parts: Direction,
    reverse: bool,
    reads: frozenset[str],
    gap: Tensor | None,
    time: Written | Runs | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Signals]:
    """One direction on x (B, E, L): the scan's output (B, E, L) and this direction's signals."""
    state, u = parts.A_log.shape[1], _convolve(x, parts, reverse, time)
    u = u if mask is None else u * mask
    projected = _call(parts.x_proj, u.transpose(1, 2))  # (B, L, R + 2N)
    dt, ssm_B, ssm_C = projected.split([projected.shape[-1] - 2 * state, state, state], dim=-1)
    delta, bias = _expand_delta(dt, parts)
    B, C = ssm_B.transpose(1, 2), ssm_C.transpose(1, 2)
    softplus = not reads & _DELTAS and gap is None
    if not softplus:  # here instead of in the kernel: the scan then takes Δ as it is
        delta, bias = delta_softplus(delta, bias), None
    if gap is not None:
        if gap.shape[2] == 1:  # their number only: each lasts as long as a token without content
            empty = delta_softplus(*_expand_delta(dt.new_zeros(1, 1, dt.shape[2]), parts))
            gap = gap * empty.transpose(1, 2)
        y = _scan_over(gap.transpose(1, 2).to(delta.dtype), u, delta, B, C, parts, reverse)
    else:
        A, D = decay_rates(_loose(parts, "A_log")), wide(_loose(parts, "D"))
        y = _scan(Scan(u, delta, A, B, C, D, z, bias, softplus, reverse), time)
    signals = Signals(
        delta.transpose(1, 2) if "delta" in reads else None,
        wide(delta).mean(dim=1) if "delta_mean" in reads else None,
        ssm_B if "ssm_B" in reads else None,
        ssm_C if "ssm_C" in reads else None,
    )
    return y, signals


def _time(runs: Runs, parts: Parts, x: Tensor) -> Written | Runs:
    """The sequence written out, or, where convolution and scan step through runs, these."""
    plain = isinstance(parts, MixerWeights) or are_plain(tuple(way.conv for way in parts.directions))
    return runs if plain and stepping_kernels(x) else write_out(runs)


def _scan(scan: Scan, time: Written | Runs | None) -> Tensor:
    """On the sequence as it is; or averaged over the positions that each token lasts."""
    u, delta, A, B, C, D, z, bias, softplus, reverse = scan
    if isinstance(time, Runs):
        return scan_runs(scan._replace(B=B.unsqueeze(1), C=C.unsqueeze(1)), time, stepping_kernels(u))
    if time is None:
        return selective_scan(u, delta, A, B, C, D, z, bias, softplus, reverse=reverse)
    u, z = time.repeat(u, blank=True), None if z is None else time.repeat(z)
    delta, B, C = time.repeat(delta), time.repeat(B), time.repeat(C)
    return time.average(selective_scan(u, delta, A, B, C, D, z, bias, softplus, reverse=reverse))


def _convolve(x: Tensor, parts: Direction, reverse: bool, time: Written | Runs | None) -> Tensor:
    if isinstance(time, Written):
        return time.average(_convolve(time.repeat(x, blank=True), parts, reverse, None))
    if isinstance(parts, DirectionLayers) and not are_plain((parts.conv,)):
        # The module pads both ends; the tokens visited first come first.
        y = parts.conv(x.flip(-1) if reverse else x)[..., : x.shape[-1]]
        return F.silu(y.flip(-1) if reverse else y)
    if isinstance(parts, DirectionLayers):
        weight, bias = parts.conv.weight, parts.conv.bias
    else:
        weight, bias = parts.conv_weight, parts.conv_bias
    if time is not None:
        return convolve_runs(x, weight, bias, time, reverse, stepping_kernels(x))
    return causal_conv1d(x, weight, bias, reverse=reverse)


def _expand_delta(dt: Tensor, parts: Direction) -> tuple[Tensor, Tensor | None]:
    """Δ before softplus, (B, E, L), in the memory order of :func:`_project_in`, and the bias that it lacks."""
    if isinstance(parts, DirectionLayers):
        return parts.dt_proj(dt).transpose(1, 2), None
    bias = wide(parts.dt_bias)
    if length_last(dt.device):
        return torch.matmul(parts.dt_weight, dt.transpose(1, 2)), bias
    return F.linear(dt, parts.dt_weight).transpose(1, 2), bias


def _scan_over(
    passed: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, parts: Direction, reverse: bool
) -> Tensor:
    """A scan whose state decays by Δ + ``passed`` (B, E, L) at each token while the input enters by Δ alone.

    The kernel knows one time step, so it gets the longer one, and less of the input in proportion.
    """
    total = delta + passed
    share = delta / total.clamp(min=torch.finfo(total.dtype).tiny)
    y = selective_scan(u * share, total, decay_rates(_loose(parts, "A_log")), B, C, reverse=reverse)
    return y + _loose(parts, "D").to(y.dtype)[:, None] * u


def _loose(parts: Direction, name: str) -> Tensor:
    """A parameter that no layer holds, and so no layer can take care of."""
    x: Tensor = getattr(parts, name)
    if not (plain_tensors((x,)) or torch.compiler.is_compiling()):
        raise InputError(
            f"the mixer's {name} is a {type(x).__name__}, and only layers may have such weights; leave {name} as a "
            "plain parameter, or shard whole blocks, so that it is whole when the block runs"
        )
    return x


def _call(layer: Tensor | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return F.linear(x, layer) if isinstance(layer, Tensor) else layer(x)


def _add_signals(total: Signals, found: Signals) -> Signals:
    """Sum two directions' signals; what is missing on one side is taken from the other."""
    return Signals(*(_add_present(a, b) for a, b in zip(total, found, strict=True)))


def _add_present(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b  # a layer's hook may hold the tensor that ``a`` looks into


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum, in the memory of ``a`` if no derivative will ask for it: ``a`` is ours and not read again."""
    return a + b if torch.is_grad_enabled() or under_transform() else a.add_(b)
