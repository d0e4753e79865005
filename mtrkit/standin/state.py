"""``mamba_ssm.ops.triton.selective_state_update``: one step of the scan, for code that generates token by token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrkit.errors import InputError

Maybe = Tensor | None


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Maybe = None,
    z: Maybe = None,
    dt_bias: Maybe = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Scan one more token, whose state takes the place of the one before.

    Args:
        state: (B, E, N), overwritten.
        x: (B, E), the input.
        dt: (B, E), Δ before bias and softplus.
        A: (E, N).
        B: (B, N).
        C: (B, N).
        D: (E,). Default: no skip.
        z: (B, E). Default: no gate.
        dt_bias: (E,). Default: none.
        dt_softplus: Whether softplus is applied to Δ.

    Returns:
        (B, E) in the dtype of ``x``; the arithmetic is in float32 at least.

    Raises:
        InputError: Other shapes, the heads and groups of Mamba-2 among them.
    """
    _check(state, x, dt, A, B, C)
    wide = torch.promote_types(x.dtype, torch.float32)
    u, delta = x.to(wide), dt.to(wide)
    if dt_bias is not None:
        delta = delta + dt_bias
    if dt_softplus:
        delta = F.softplus(delta)
    new = torch.exp(delta[..., None] * A) * state.to(wide) + (delta * u)[..., None] * B[:, None]
    with torch.no_grad():
        state.copy_(new)
    y = (new * C[:, None]).sum(-1)
    if D is not None:
        y = y + D * u
    return (y if z is None else y * F.silu(z.to(wide))).to(x.dtype)


def _check(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if state.dim() != 3:
        raise InputError(f"state has shape {tuple(state.shape)}; expected (batch, channels, state size), as in Mamba-1")
    batch, channels, states = state.shape
    wanted = {"x": (batch, channels), "dt": (batch, channels), "A": (channels, states)}
    wanted |= {"B": (batch, states), "C": (batch, states)}
    for (name, shape), found in zip(wanted.items(), (x, dt, A, B, C), strict=True):
        if tuple(found.shape) != shape:
            raise InputError(f"{name} has shape {tuple(found.shape)}; expected {shape}")
