"""Backend ``native``: the compiled kernel on the CPU, torch operations everywhere else."""

import torch
from torch import Tensor

from mtrkit.native.library import LEVELS, current_level, library
from mtrkit.scan import operators
from mtrkit.scan.backend import Backend


def _status() -> tuple[bool, str]:
    missing = library().missing
    if missing:
        return True, f"torch fallback: {missing}"
    return True, f"compiled, {LEVELS[current_level()]}"


def _refuses(device: str, dtype: torch.dtype) -> str:
    return ""


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    # States are kept for the backward pass only where there will be one.
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y, last, _ = operators.selective_scan(*inputs, delta_softplus, reverse, save)
    return y, last


BACKEND = Backend("native", _status, _refuses, _scan, operators.causal_conv1d)
