"""The selective scan in plain torch operations, in chunks of the sequence, forward and backward.

For devices without a kernel of their own, for installations without the compiled library, and for float64.
Only a chunk's worth of (B, E, N) states exists at a time, and the loop over time is one fused multiply-add
per token. The backward pass is written out, since an operator's implementation runs below autograd.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.native.layout import empty_as

CHUNK = 32  # tokens per chunk: enough to keep the vectorised part long, few enough to keep its memory small

ScanGrads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _Chunk(NamedTuple):
    """Chunk of the sequence, time first: T tokens, G groups of F channels each (E = G·F)."""

    u: Tensor  # (T, B, G, F)
    step: Tensor  # (T, B, G, F), after bias and softplus
    B: Tensor  # (T, B, G, N)
    C: Tensor  # (T, B, G, N)


class _Sequence(NamedTuple):
    """The whole sequence in the order in which it is visited, and where its chunks begin."""

    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    A: Tensor  # (G, F, N)

    def chunk(self, start: int) -> _Chunk:
        part = slice(start, start + CHUNK)
        return _Chunk(self.u[part], self.step[part], self.B[part], self.C[part])


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`mtrkit.native.scan.scan_forward`, on any device, float64 included."""
    seq = _sequence(u, delta, A, B, C, bias, softplus, reverse)
    length = u.shape[2]
    state = seq.u.new_zeros((*seq.u.shape[1:], A.shape[1]))
    starts, outputs = [], []
    for start in range(0, length, CHUNK):
        chunk = seq.chunk(start)
        starts.append(state)
        states = _states(chunk, seq.A, state)[1]
        outputs.append(_contract(states, chunk.C))
        state = states[-1]
    y = _skip_and_gate(_back_to_tokens(torch.cat(outputs), reverse), u, D, z)
    out = empty_as(u)
    out.copy_(y)
    checkpoints = torch.stack(starts) if save else u.new_empty(0, dtype=y.dtype)
    return out, _last(state), checkpoints


def scan_backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    checkpoints: Tensor,
    softplus: bool,
    reverse: bool,
) -> ScanGrads:
    """Arguments and results of :func:`mtrkit.native.scan.scan_backward`, on any device, float64 included."""
    seq = _sequence(u, delta, A, B, C, bias, softplus, reverse)
    dtype = seq.u.dtype
    grad_y, wide_u = grad_y.to(dtype), u.to(dtype)
    gated = grad_y if z is None else grad_y * F.silu(z.to(dtype))
    du_chunks, dstep_chunks, dB_chunks, dC_chunks, y_chunks = [], [], [], [], []
    dA = torch.zeros_like(seq.A)
    grads = _visit(gated, reverse, seq.A.shape[0])
    carry = torch.zeros_like(checkpoints[0]) if grad_last is None else grad_last.to(dtype).view_as(checkpoints[0])
    starts = range(0, u.shape[2], CHUNK)
    for index in reversed(range(len(starts))):
        chunk, grad = seq.chunk(starts[index]), grads[starts[index] : starts[index] + CHUNK]
        decay, states = _states(chunk, seq.A, checkpoints[index])
        if z is not None:
            y_chunks.append(_contract(states, chunk.C))
        dC_chunks.append((grad.unsqueeze(-1) * states).sum(-2))
        dstates, carry = _state_grads(decay, grad, chunk.C, carry)
        dinput = _contract(dstates, chunk.B)  # gradient of Δu
        dB_chunks.append(((chunk.step * chunk.u).unsqueeze(-1) * dstates).sum(-2))
        before = torch.cat((checkpoints[index].unsqueeze(0), states[:-1]))
        through = dstates * before * decay  # gradient of ΔA
        dstep_chunks.append(dinput * chunk.u + (through * seq.A).sum(-1))
        dA += (through * chunk.step.unsqueeze(-1)).sum((0, 1))
        du_chunks.append(dinput * chunk.step)
    du = _back_to_tokens(torch.cat(du_chunks[::-1]), reverse)
    dstep = _back_to_tokens(torch.cat(dstep_chunks[::-1]), reverse)
    if softplus:
        dstep = dstep * torch.sigmoid(_raw_step(delta, bias, dtype))
    none = du.new_empty(0)
    dz = none
    if z is not None:
        y = _skip_and_gate(_back_to_tokens(torch.cat(y_chunks[::-1]), reverse), u, D, None)
        dz = torch.ops.aten.silu_backward(grad_y * y, z.to(dtype))
    if D is not None:
        du = du + gated * D.to(dtype)[:, None]
    return (
        du,
        dstep,
        dA.view(A.shape),
        _rows_to_tokens(torch.cat(dB_chunks[::-1]), reverse),
        _rows_to_tokens(torch.cat(dC_chunks[::-1]), reverse),
        none if D is None else (gated * wide_u).sum((0, 2)),
        dz,
        none if bias is None else dstep.sum((0, 2)),
    )


def _contract(states: Tensor, rows: Tensor) -> Tensor:
    """Sum over N of (T, B, G, F, N) times (T, B, G, N); a matrix product would order it by the batch size."""
    return (states * rows.unsqueeze(-2)).sum(-1)


def _states(chunk: _Chunk, A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Decay factors and states (T, B, G, F, N) of a chunk that starts from ``state``."""
    decay = torch.exp(chunk.step.unsqueeze(-1) * A)
    states = (chunk.step * chunk.u).unsqueeze(-1) * chunk.B.unsqueeze(-2)
    for t in range(states.shape[0]):
        state = states[t].addcmul_(decay[t], state)
    return decay, states


def _state_grads(decay: Tensor, grad: Tensor, C: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of a chunk's states and of the state before it; ``carry`` comes from the chunk behind."""
    dstates = grad.unsqueeze(-1) * C.unsqueeze(-2)
    for t in reversed(range(dstates.shape[0])):
        dstates[t] += carry
        carry = dstates[t] * decay[t]
    return dstates, carry


def _sequence(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    bias: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> _Sequence:
    dtype, groups = torch.promote_types(u.dtype, torch.float32), B.shape[1]
    step = _raw_step(delta, bias, dtype)
    if softplus:
        step = F.softplus(step)
    B, C = (_flip(x.to(dtype).permute(3, 0, 1, 2), reverse) for x in (B, C))
    grouped_A = A.to(dtype).reshape(groups, -1, A.shape[1])
    return _Sequence(_visit(u.to(dtype), reverse, groups), _visit(step, reverse, groups), B, C, grouped_A)


def _raw_step(delta: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    delta = delta.to(dtype)
    return delta if bias is None else delta + bias.to(dtype)[:, None]


def _visit(x: Tensor, reverse: bool, groups: int) -> Tensor:
    """(B, E, L) to (L, B, G, F) in the order of the scan."""
    batch, channels, length = x.shape
    return _flip(x.permute(2, 0, 1), reverse).reshape(length, batch, groups, channels // groups)


def _back_to_tokens(x: Tensor, reverse: bool) -> Tensor:
    """(L, B, G, F) to (B, E, L) in the order of the tokens."""
    return _flip(x, reverse).flatten(2).permute(1, 2, 0)


def _rows_to_tokens(x: Tensor, reverse: bool) -> Tensor:
    """(L, B, G, N) to (B, G, N, L) in the order of the tokens."""
    return _flip(x, reverse).permute(1, 2, 3, 0)


def _flip(x: Tensor, reverse: bool) -> Tensor:
    return x.flip(0) if reverse else x


def _skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D.to(y.dtype)[:, None] * u.to(y.dtype)
    return y if z is None else y * F.silu(z.to(y.dtype))


def _last(state: Tensor) -> Tensor:
    """(B, G, F, N) to (B, E, N), in memory order (B, N, E) as the compiled kernel writes it."""
    return state.flatten(1, 2).transpose(1, 2).contiguous().transpose(1, 2)
