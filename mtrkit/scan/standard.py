"""Scan and convolution as standard operators, for programs that run where mtrkit is not: what export captures.

The recurrence has two forms. A program of torch holds it in chunks of the sequence: the steps of a chunk are written
out, and every step is taken in all chunks at once, so that a sequence of L tokens takes about 3 √L short steps, not L.
ONNX has an operator of its own for recurrences; for it the recurrence is captured as one operator, which the exporter
translates. Decays are at most one and are multiplied, never divided, so that float32 is enough.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.scan.backend import Backend
from mtrkit.types import Scan

Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]

_lib = torch.library.Library("mtrkit", "FRAGMENT")
_lib.define("recurrence(Tensor step, Tensor x, Tensor A, Tensor B, Tensor C, bool reverse) -> (Tensor, Tensor)")


def recurrence_in_chunks(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence ``h = exp(Δ A) h + B x``, ``y = C · h``.

    Args:
        step: Δ, time first: (L, batch, G, 1, F), for G groups of F channels.
        x: What enters, Δ u: (L, batch, G, 1, F).
        A: Decay rates (G, N, F).
        B: (L, batch, G, N, 1).
        C: (L, batch, G, 1, N).
        reverse: Whether it goes from the last token to the first.

    Returns:
        y (L, batch, G, 1, F) and the state after the token visited last (batch, G, N, F).
    """
    length = step.shape[0]
    step, x, B, C = (part.flip(0) if reverse else part for part in (step, x, B, C))
    size = math.isqrt(length - 1) + 1
    steps, xs, Bs, Cs = (_chunks(part, size) for part in (step, x, B, C))  # (chunks, size, …)
    tokens = list(zip(*(part.unbind(1) for part in (steps, xs, Bs, Cs)), strict=True))
    ends = xs[:, 0] * Bs[:, 0]  # of chunks that begin with nothing
    for step_now, x_now, B_now, _ in tokens[1:]:
        ends = _advance(ends, step_now, x_now, A, B_now)
    state, last = _carry(torch.exp(steps.sum(1) * A), ends)
    found = []
    for step_now, x_now, B_now, C_now in tokens:
        state = _advance(state, step_now, x_now, A, B_now)
        found.append(torch.matmul(C_now, state))
    y = torch.stack(found, 1).flatten(0, 1)[:length]
    return (y.flip(0) if reverse else y), last


def _advance(state: Tensor, step: Tensor, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The state behind a token. Decays and inputs of all tokens at once would be written to memory and read again."""
    return torch.addcmul(x * B, torch.exp(step * A), state)


def _chunks(x: Tensor, size: int) -> Tensor:
    """(L, …) to (chunks, size, …); what is missing at the end is zero, which leaves the state as it is."""
    missing = -x.shape[0] % size
    if missing:
        x = torch.cat([x, x.new_zeros((missing, *x.shape[1:]))])
    return x.unflatten(0, (x.shape[0] // size, size))


def _carry(decays: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """State in front of every chunk, and behind the last, from each chunk's decay and what it would end with alone."""
    state = torch.zeros_like(ends[0])
    starts = []
    for decay, end in zip(decays.unbind(0), ends.unbind(0), strict=True):
        starts.append(state)
        state = torch.addcmul(end, decay, state)
    return torch.stack(starts), state


def _recurrence_shapes(
    step: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((*x.shape[1:3], B.shape[3], x.shape[4]))


_lib.impl("recurrence", recurrence_in_chunks, "CompositeExplicitAutograd")
torch.library.register_fake("mtrkit::recurrence", _recurrence_shapes, lib=_lib)
recurrence = torch.ops.mtrkit.recurrence.default


def scan_in_chunks(scan: Scan) -> tuple[Tensor, Tensor]:
    """Output (B, E, L) and last state (B, E, N), by operators of torch."""
    return _scan(scan, recurrence_in_chunks)


def scan_as_operator(scan: Scan) -> tuple[Tensor, Tensor]:
    """The same, by operators of torch and one for the recurrence."""
    return _scan(scan, recurrence)


def _scan(scan: Scan, run: Recurrence) -> tuple[Tensor, Tensor]:
    """Everything but the recurrence is computed on rows (batch, L, E), as the products in front of and behind it are.

    From there to the recurrence's order, time first, whole rows are moved; from (batch, E, L) it would be single
    numbers, which takes runtimes a tenth of their time.
    """
    dtype, groups = torch.promote_types(scan.u.dtype, torch.float32), scan.B.shape[1]
    u, step = _as(scan.u, dtype).transpose(1, 2), _as(scan.delta, dtype).transpose(1, 2)
    step = step if scan.bias is None else step + _as(scan.bias, dtype)
    step = F.softplus(step) if scan.softplus else step
    A = _as(scan.A, dtype).unflatten(0, (groups, -1)).transpose(1, 2)
    wide = (part.transpose(0, 1).unflatten(2, (groups, 1, -1)) for part in (step, step * u))
    B, C = (_as(part, dtype).movedim(-1, 0) for part in (scan.B, scan.C))
    y, last = run(next(wide), next(wide), A, B.unsqueeze(-1), C.unsqueeze(-2), scan.reverse)
    y = y.flatten(2).transpose(0, 1)
    y = y if scan.D is None else y + _as(scan.D, dtype) * u
    y = y if scan.z is None else y * F.silu(_as(scan.z, dtype).transpose(1, 2))
    return _as(y, scan.u.dtype).transpose(1, 2), last.transpose(2, 3).flatten(1, 2)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """In that dtype; a conversion that does nothing would be captured all the same."""
    return x if x.dtype == dtype else x.to(dtype)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """The causal convolution of x (B, E, L) with weight (E, K) as a sum of shifted products.

    Runtimes have fast code for wide convolutions, not for as many groups as there are channels.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    length, past = x.shape[2], weight.shape[1] - 1
    rows = F.pad(_as(x, dtype).transpose(1, 2), (0, 0, 0, past) if reverse else (0, 0, past, 0))
    taps = _as(weight, dtype).flip(1) if reverse else _as(weight, dtype)
    y = rows[:, :length] * taps[:, 0]
    for lag in range(1, past + 1):
        y = y + rows[:, lag : lag + length] * taps[:, lag]
    y = y if bias is None else y + _as(bias, dtype)
    return _as((F.silu(y) if silu else y).transpose(1, 2), x.dtype)


def soften(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus(delta + bias) for Δ (B, E, L) and its bias (E,)."""
    return _as(F.softplus(delta if bias is None else delta + bias[:, None]), delta.dtype)


def _status() -> tuple[bool, str]:
    return True, "standard operators, for export"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


CHUNKS = Backend("chunks", _status, _refuses, scan_in_chunks, convolve, soften)
OPERATOR = Backend("operator", _status, _refuses, scan_as_operator, convolve, soften)
