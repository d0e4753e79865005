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
from mtrkit.types import Scan

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


def scan_forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments and results of :func:`mtrkit.native.scan.scan_forward`, on any device, float64 included."""
    seq = _sequence(scan)
    state = seq.u.new_zeros((*seq.u.shape[1:], scan.A.shape[1]))
    starts, outputs = [], []
    for start in range(0, scan.u.shape[2], CHUNK):
        chunk = seq.chunk(start)
        starts.append(state)
        states = _states(chunk, seq.A, state)[1]
        outputs.append(_contract(states, chunk.C))
        state = states[-1]
    y = _skip_and_gate(_back_to_tokens(torch.cat(outputs), scan.reverse), scan)
    out = empty_as(scan.u)
    out.copy_(y)
    checkpoints = torch.stack(starts) if save else y.new_empty(0)
    return out, _last(state), checkpoints


def scan_backward(grad_y: Tensor, grad_last: Tensor | None, scan: Scan, checkpoints: Tensor) -> ScanGrads:
    """Arguments and results of :func:`mtrkit.native.scan.scan_backward`, on any device, float64 included."""
    seq = _sequence(scan)
    dtype, grad_y = seq.u.dtype, grad_y.to(seq.u.dtype)
    gated = grad_y if scan.z is None else grad_y * F.silu(scan.z.to(dtype))
    grads = _visit(gated, scan.reverse, seq.A.shape[0])
    carry = torch.zeros_like(checkpoints[0]) if grad_last is None else grad_last.to(dtype).view_as(checkpoints[0])
    found, dA = [], torch.zeros_like(seq.A)
    starts = range(0, scan.u.shape[2], CHUNK)
    for index in reversed(range(len(starts))):
        grad = grads[starts[index] : starts[index] + CHUNK]
        chunk_grads, dA_part, carry = _chunk_backward(seq, starts[index], grad, checkpoints[index], carry)
        found.append(chunk_grads)
        dA += dA_part
    du, dstep, dB, dC, y = (torch.cat(parts[::-1]) for parts in zip(*found, strict=True))
    du, dstep, y = (_back_to_tokens(x, scan.reverse) for x in (du, dstep, y))
    dB, dC = (_rows_to_tokens(x, scan.reverse) for x in (dB, dC))
    return _finish(scan, _ChunkGrads(du, dstep, dB, dC, y), dA, grad_y, gated)


class _ChunkGrads(NamedTuple):
    """What the backward pass finds for a chunk, or for the whole sequence: gradients, and the output again."""

    u: Tensor
    step: Tensor
    B: Tensor
    C: Tensor
    y: Tensor  # without skip and gate


def _chunk_backward(
    seq: _Sequence, start: int, grad: Tensor, before: Tensor, carry: Tensor
) -> tuple[_ChunkGrads, Tensor, Tensor]:
    """A chunk's gradients, its part of that of A, and the gradient of the state ``before`` it."""
    chunk = seq.chunk(start)
    decay, states = _states(chunk, seq.A, before)
    y, dC = _contract(states, chunk.C), (grad.unsqueeze(-1) * states).sum(-2)
    dstates, carry = _state_grads(decay, grad, chunk.C, carry)
    dinput = _contract(dstates, chunk.B)  # gradient of Δu
    dB = ((chunk.step * chunk.u).unsqueeze(-1) * dstates).sum(-2)
    through = dstates * torch.cat((before.unsqueeze(0), states[:-1])) * decay  # gradient of ΔA
    dstep = dinput * chunk.u + (through * seq.A).sum(-1)
    dA = (through * chunk.step.unsqueeze(-1)).sum((0, 1))
    return _ChunkGrads(dinput * chunk.step, dstep, dB, dC, y), dA, carry


def _finish(scan: Scan, found: _ChunkGrads, dA: Tensor, grad_y: Tensor, gated: Tensor) -> ScanGrads:
    """The gradients of what stands around the recurrence: softplus, bias, skip and gate."""
    dtype, none = found.u.dtype, found.u.new_empty(0)
    du, dstep, dD, dz = found.u, found.step, none, none
    if scan.softplus:
        dstep = dstep * torch.sigmoid(_raw_step(scan, dtype))
    if scan.z is not None:
        y = _skip_and_gate(found.y, scan._replace(z=None))
        dz = torch.ops.aten.silu_backward(grad_y * y, scan.z.to(dtype))
    if scan.D is not None:
        du, dD = du + gated * scan.D.to(dtype)[:, None], (gated * scan.u.to(dtype)).sum((0, 2))
    dbias = none if scan.bias is None else dstep.sum((0, 2))
    return du, dstep, dA.view(scan.A.shape), found.B, found.C, dD, dz, dbias


def softplus_forward(delta: Tensor, bias: Tensor | None) -> Tensor:
    """Arguments and result of :func:`mtrkit.native.scan.softplus_forward`, on any device, float64 included."""
    biased = delta if bias is None else delta + bias[:, None]
    return empty_as(delta).copy_(F.softplus(biased))


def checkpoint_shape(batch: int, channels: int, length: int, states: int, groups: int, save: bool) -> tuple[int, ...]:
    """Shape of the states kept for the backward pass, one set per chunk."""
    return (-(-length // CHUNK), batch, groups, channels // groups, states) if save else (0,)


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


def _sequence(scan: Scan) -> _Sequence:
    dtype, groups = torch.promote_types(scan.u.dtype, torch.float32), scan.B.shape[1]
    step = _raw_step(scan, dtype)
    if scan.softplus:
        step = F.softplus(step)
    u, step = (_visit(x, scan.reverse, groups) for x in (scan.u.to(dtype), step))
    B, C = (_flip(x.to(dtype).permute(3, 0, 1, 2), scan.reverse) for x in (scan.B, scan.C))
    return _Sequence(u, step, B, C, scan.A.to(dtype).reshape(groups, -1, scan.A.shape[1]))


def _raw_step(scan: Scan, dtype: torch.dtype) -> Tensor:
    delta = scan.delta.to(dtype)
    return delta if scan.bias is None else delta + scan.bias.to(dtype)[:, None]


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


def _skip_and_gate(y: Tensor, scan: Scan) -> Tensor:
    if scan.D is not None:
        y = y + scan.D.to(y.dtype)[:, None] * scan.u.to(y.dtype)
    return y if scan.z is None else y * F.silu(scan.z.to(y.dtype))


def _last(state: Tensor) -> Tensor:
    """(B, G, F, N) to (B, E, N), in memory order (B, N, E) as the compiled kernel writes it."""
    return state.flatten(1, 2).transpose(1, 2).contiguous().transpose(1, 2)
