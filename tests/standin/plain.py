"""Everything that the stand-ins compute, as plain loops in float64; of autograd only elementwise products and sums."""

import torch
import torch.nn.functional as F


def scan(u, delta, A, B, C, D=None, z=None, bias=None, softplus=False):
    """Output before the gate, output and last state; B and C are (B, G, N, L)."""
    if bias is not None:
        delta = delta + bias[:, None]
    if softplus:
        delta = F.softplus(delta)
    state, columns, share = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), [], u.shape[1] // B.shape[1]
    group = [channel // share for channel in range(u.shape[1])]
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * B[:, group, :, t] * u[:, :, t, None]
        columns.append((state * C[:, group, :, t]).sum(-1))
    y = torch.stack(columns, dim=-1)
    if D is not None:
        y = y + D[:, None] * u
    return y, y if z is None else y * F.silu(z), state


def conv(x, weight, bias=None, silu=True, before=None, names=None):
    """Token by token; ``before`` are the inputs in front, ``names`` (B, L) the sequence of each token."""
    rows, width = [], weight.shape[1]
    for sample in range(x.shape[0]):
        columns = []
        for t in range(x.shape[2]):
            total = torch.zeros(x.shape[1], dtype=x.dtype) if bias is None else bias
            for lag in range(width):
                if t - lag >= 0:
                    if names is None or names[sample, t - lag] == names[sample, t]:
                        total = total + weight[:, width - 1 - lag] * x[sample, :, t - lag]
                elif before is not None and t - lag >= -before.shape[2]:
                    total = total + weight[:, width - 1 - lag] * before[sample, :, t - lag]
            columns.append(total)
        rows.append(torch.stack(columns, dim=1))
    y = torch.stack(rows)
    return F.silu(y) if silu else y


def inner(xz, conv_weight, conv_bias, x_proj, dt_proj, A, D, bias, B=None, C=None, B_bias=0.0, C_bias=0.0):
    """Convolution, projections, scan and gate: the gated output, and what another direction's scan would be given."""
    x, z = xz.chunk(2, dim=1)
    u = conv(x, conv_weight[:, 0], conv_bias)
    rows, rank, states = torch.einsum("re,bel->brl", x_proj, u), dt_proj.shape[1], A.shape[1]
    delta = torch.einsum("er,brl->bel", dt_proj, rows[:, :rank])
    found_B, found_C = (
        rows[:, rank : rank + states].transpose(1, 2) + B_bias,
        rows[:, -states:].transpose(1, 2) + C_bias,
    )
    B = found_B.transpose(1, 2)[:, None] if B is None else B
    C = found_C.transpose(1, 2)[:, None] if C is None else C
    return scan(u, delta, A, B, C, D, z, bias, True)[1], (u, delta, B, C, z)


def norm(x, weight, bias, residual, eps, rms):
    """The norm of the sum, and the sum."""
    total = x if residual is None else x + residual
    centred = total if rms else total - total.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return (y if bias is None else y + bias), total
