"""The parameters of a mixer, whatever module they come from."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import InputError


class DirectionWeights(NamedTuple):
    """Parameters of one scan direction; E inner width, N state size, R rank of Δ, K conv width."""

    conv_weight: Tensor  # (E, 1, K)
    conv_bias: Tensor | None  # (E,)
    x_proj: Tensor  # (R + 2N, E), rows in the order Δ, B, C
    dt_weight: Tensor  # (E, R)
    dt_bias: Tensor  # (E,)
    A_log: Tensor  # (E, N), log(−A)
    D: Tensor  # (E,)


def wide(x: Tensor) -> Tensor:
    """In float32 at least, as is the recurrence in models of any precision."""
    if not x.is_floating_point():
        raise InputError(
            f"a weight of a mixer has dtype {x.dtype}; only real floating-point weights have a meaning there"
        )
    return x if x.dtype in (torch.float64, torch.float32) else x.float()


def decay_rates(A_log: Tensor) -> Tensor:
    """A, negative, in float32 at least."""
    return -torch.exp(wide(A_log))


class MixerWeights(NamedTuple):
    """Parameters of a whole mixer; D is the model width."""

    in_proj: Tensor  # (2E, D), the rows of x before those of z
    in_bias: Tensor | None
    out_proj: Tensor  # (D, E)
    out_bias: Tensor | None
    directions: tuple[DirectionWeights, ...]  # forward, then backward if there is one
    halve: bool = False  # whether the sum of the directions is halved


class BlockWeights(NamedTuple):
    """Parameters of a block: the norm of the sum, then the mixer."""

    norm: Tensor  # (D,)
    eps: float
    mixer: MixerWeights
