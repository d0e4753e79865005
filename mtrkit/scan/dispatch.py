"""Which backend runs: the registry, the choice, and the scan with a direction that the mixers call."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from mtrkit.dynamo import constant_result
from mtrkit.errors import BackendError, InputError
from mtrkit.registry import Registry
from mtrkit.scan import mamba_ssm, native, reference
from mtrkit.scan.backend import Backend, BackendStatus
from mtrkit.scan.checks import check_scan

_logger = logging.getLogger(__name__)

BACKENDS: Registry[Backend] = Registry("scan backend")
for _backend in (mamba_ssm.BACKEND, native.BACKEND, reference.BACKEND):  # best first
    BACKENDS.add(_backend.name, _backend)

_forced = "auto"


def scan_backends() -> list[BackendStatus]:
    """Every scan backend, best first, with whether it can run here and why.

    Returns:
        Named tuples ``(name, available, reason)``.
    """
    return [BackendStatus(backend.name, *backend.status()) for backend in BACKENDS]


@contextmanager
def use_scan_backend(name: str) -> Iterator[None]:
    """Make every scan inside the block use one backend, in all threads of this process.

    Args:
        name: A name in :func:`scan_backends`, or ``"auto"`` for the best that can run.

    Raises:
        UnknownNameError: No such backend.
        BackendError: The backend cannot run here; the message gives its reason.
    """
    global _forced
    if name != "auto":
        _require_available(BACKENDS.get(name))
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backend_for(device: torch.device | str) -> str:
    """Name of the backend that float32 tensors on ``device`` would be scanned by now."""
    return _choose(_forced, torch.device(device).type, torch.float32)


def length_last(device: torch.device) -> bool:
    """Whether the backend for ``device`` reads (B, E, L) tensors fastest with tokens as neighbours in memory.

    If not, channels should be neighbours: a (B, L, E) tensor seen through ``transpose(1, 2)``.
    """
    return BACKENDS.get(_choose(_forced, device.type, torch.float32)).length_last


def choose_backend(requested: str, x: Tensor) -> Backend:
    """The backend for tensors like ``x``; ``requested`` is a name, or "auto" for the forced or the best."""
    name = _forced if requested == "auto" else requested
    return BACKENDS.get(_choose(name, x.device.type, x.dtype))


def scan_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Selective scan in either direction; :func:`mtrkit.selective_scan` describes the arguments.

    Args:
        u: (B, E, L).
        delta: (B, E, L).
        A: (E, N).
        B: (B, N, L), (B, G, N, L) or (E, N).
        C: Like B.
        D: (E,).
        z: (B, E, L).
        delta_bias: (E,).
        delta_softplus: Whether softplus is applied to ``delta + delta_bias``.
        reverse: Whether the scan runs from the last token to the first. The output stays aligned with the
            tokens.
        backend: A name in :func:`scan_backends` or ``"auto"``.

    Returns:
        The output (B, E, L) in the dtype of ``u``, and the state (B, E, N) after the token visited last.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias)
    B, C = _grouped(B, u), _grouped(C, u)
    B, C = _same_groups(B, C)
    run = choose_backend(backend, u).scan
    return run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)


@constant_result  # compile takes the answer, not the import machinery behind it
def _choose(name: str, device: str, dtype: torch.dtype) -> str:
    return _chosen(name, device, dtype)


@lru_cache  # asked before every operator, and what is installed does not change
def _chosen(name: str, device: str, dtype: torch.dtype) -> str:
    if name == "auto":
        return _best(device, dtype)
    backend = BACKENDS.get(name)
    _require_available(backend)
    refusal = backend.refuses(device, dtype)
    if refusal:
        raise BackendError(f'scan backend {name!r} cannot run here: {refusal}; use backend="auto"')
    return name


def _best(device: str, dtype: torch.dtype) -> str:
    best = next(b for b in BACKENDS if not b.refuses(device, dtype) and b.status()[0])
    _logger.debug("scan backend for %s tensors of %s: %s (%s)", device, dtype, best.name, best.status()[1])
    return best.name


def _require_available(backend: Backend) -> None:
    available, reason = backend.status()
    if not available:
        raise BackendError(f'scan backend {backend.name!r} cannot run here: {reason}; use backend="auto"')


def _grouped(x: Tensor, u: Tensor) -> Tensor:
    """B or C as (B, G, N, L); one that does not depend on the input becomes a group per channel, repeated."""
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.unsqueeze(1)
    batch, channels, length = u.shape
    return x[None, :, :, None].expand(batch, channels, x.shape[1], length)


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    if B.shape[1] == C.shape[1]:
        return B, C
    groups = max(B.shape[1], C.shape[1])
    if groups % min(B.shape[1], C.shape[1]) != 0:
        raise InputError(f"B has {B.shape[1]} groups and C has {C.shape[1]}; one must divide the other")
    repeated = (x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))
    return next(repeated), next(repeated)
