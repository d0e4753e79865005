"""What the parameters of a mixer are before training.

Source: Gu and Dao, "Mamba" (arXiv:2312.00752), section 3.6.
"""

import math

import torch
from torch import Tensor, nn


def init_dt(
    projection: nn.Linear,
    limits: tuple[float, float] = (1e-3, 0.1),
    floor: float = 0.0,
    scale: float = 1.0,
    constant: bool = False,
) -> None:
    """Draw the bias of Δ, by which Δ is log-uniform if nothing comes in, and set the weight.

    Args:
        projection: From rank R to E channels, with a bias. Changed in place.
        limits: The smallest and the largest Δ.
        floor: Lower bound of Δ.
        scale: The weight's largest value, as a multiple of R^(−1/2).
        constant: Whether the weight is that value, and not uniform between it and its negative.
    """
    low, high = map(math.log, limits)
    bound = projection.in_features**-0.5 * scale
    dt = torch.exp(low + (high - low) * torch.rand_like(projection.bias)).clamp(min=floor)
    with torch.no_grad():
        if constant:
            projection.weight.fill_(bound)
        else:
            projection.weight.uniform_(-bound, bound)
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def init_decay(channels: int, states: int, device: torch.device | str | None = None) -> nn.Parameter:
    """``A_log`` (E, N) float32: the rates 1 … N in each channel."""
    rates = torch.arange(1, states + 1, dtype=torch.float32, device=device)
    return _undecayed(torch.log(rates).repeat(channels, 1))


def init_skip(channels: int, device: torch.device | str | None = None) -> nn.Parameter:
    """``D`` (E,): ones."""
    return _undecayed(torch.ones(channels, device=device))


def _undecayed(values: Tensor) -> nn.Parameter:
    """A parameter with the mark by which Mamba training code leaves it out of weight decay."""
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
