"""Run a scan backend on a small random problem and compare it with the reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import BackendError
from mtrkit.scan import selective_scan, use_scan_backend

# On errors relative to the largest value; a wrong kernel is off by far more. 16-bit numbers are rounded on the way in
# and out, and gradients that cancel multiply that.
BOUNDS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Parity(NamedTuple):
    """How far a backend is from the reference in float64, relative to the largest value."""

    forward: float
    backward: float
    bound: float = BOUNDS[torch.float32]

    @property
    def good(self) -> bool:
        """Whether both errors are those of rounding; NaN is not."""
        return self.forward < self.bound and self.backward < self.bound


def check_backend(
    name: str,
    device: torch.device,
    *,
    length: int = 131,
    dtype: torch.dtype = torch.float32,
    reverse: bool = False,
) -> Parity | str:
    """Compare forward and backward with the reference, or return why the backend cannot run on ``device``.

    Args:
        name: A name in :func:`mtrkit.scan_backends`.
        device: Where to run it.
        length: Tokens; odd by default, so that no block size of a kernel divides it.
        dtype: Of the sequences; parameters are float32, as in models.
        reverse: Whether to scan from the last token to the first.
    """
    inputs = [x if x.dim() < 3 else x.to(dtype) for x in _random_problem(length)]
    truth = _run("reference", [x.double() for x in inputs], reverse)
    try:
        found = _run(name, [x.to(device) for x in inputs], reverse)
    except BackendError as error:
        return error.reason
    errors = [_error(x, y) for x, y in zip(found, truth, strict=True)]
    return Parity(errors[0], max(errors[1:]), BOUNDS[dtype])


def _random_problem(length: int, batch: int = 2, inner: int = 24, state: int = 16) -> list[Tensor]:
    """u, Δ, A, B, C, D, z and the bias of Δ, from a seed of their own."""
    random = torch.Generator().manual_seed(0)
    u, delta, z = (torch.randn(batch, inner, length, generator=random) for _ in range(3))
    B, C = (torch.randn(batch, state, length, generator=random) for _ in range(2))
    A = -torch.rand(inner, state, generator=random) * state
    D, bias = (torch.randn(inner, generator=random) for _ in range(2))
    return [u, delta, A, B, C, D, z, bias - 3]


def _run(name: str, inputs: list[Tensor], reverse: bool) -> list[Tensor]:
    """The output, and the gradient of its weighted sum for every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with use_scan_backend(name):
        u, delta, A, B, C, D, z, bias = leaves
        y = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True, reverse=reverse)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        gradients = torch.autograd.grad((y * weight).sum(), leaves)
    return [y.detach(), *gradients]


def _error(found: Tensor, truth: Tensor) -> float:
    return ((found.double().cpu() - truth).abs().max() / truth.abs().max()).item()
