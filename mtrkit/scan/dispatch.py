"""Which backend runs: the registry and the choice."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mtrkit.dynamo import constant_result
from mtrkit.errors import BackendError
from mtrkit.native.library import library
from mtrkit.registry import Registry
from mtrkit.scan import mamba_ssm, operators, reference, standard, triton
from mtrkit.scan.backend import COUNTERS, Backend, BackendStatus, dispatch_modes
from mtrkit.scan.kernels import NATIVE, TRITON, compiled_for

_logger = logging.getLogger(__name__)

BACKENDS: Registry[Backend] = Registry("scan backend")
for _backend in (mamba_ssm.BACKEND, triton.BACKEND, operators.BACKEND, reference.BACKEND):  # best first
    BACKENDS.add(_backend.name, _backend)
_STANDARD = {backend.name: backend for backend in (standard.CHUNKS, standard.OPERATOR)}  # never chosen by themselves

_forced = "auto"
_requests: list[list[str]] = []  # of everyone who is inside of `use_scan_backend`, the latest last


def scan_backends() -> list[BackendStatus]:
    """Every scan backend, best first, with whether it can run here and why.

    Returns:
        Named tuples ``(name, available, reason)``.
    """
    return [BackendStatus(backend.name, *backend.status()) for backend in BACKENDS]


def _named(name: str) -> Backend:
    return _STANDARD[name] if name in _STANDARD else BACKENDS.get(name)


@contextmanager
def use_scan_backend(name: str) -> Iterator[None]:
    """Make every scan inside the block use one backend, in all threads of this process.

    Other operations on tokens follow: unless the backend is ``"native"`` no compiled code of mtrkit runs, and unless it
    is ``"triton"`` none of its kernels on a GPU.

    Args:
        name: A name in :func:`scan_backends`, or ``"auto"`` for the best that can run.

    Raises:
        UnknownNameError: No such backend.
        BackendError: The backend cannot run here; the message gives its reason.
    """
    global _forced
    if name != "auto":
        _require_available(_named(name))
    request = [name]  # a list, as two that ask for the same are not the same
    _requests.append(request)
    _forced = name
    try:
        yield
    finally:
        _requests[:] = [other for other in _requests if other is not request]
        _forced = _requests[-1][0] if _requests else "auto"


def backend_for(device: torch.device | str) -> str:
    """Name of the backend that float32 tensors on ``device`` are scanned by now."""
    return backend_of(torch.device(device).type)


def backend_of(device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """The same for a device type and a dtype."""
    return _choose(_forced, device_type, dtype)


def backend_reason(name: str) -> str:
    """Why a backend can run here, and by what, or why it cannot."""
    return _named(name).status()[1]


def slow_scan(device: torch.device | str) -> str:
    """What to do if float32 tensors on a device are scanned by torch operations; empty if a kernel does it."""
    kind = torch.device(device).type
    if backend_of(kind) != operators.BACKEND.name or compiled_for(kind, torch.float32):
        return ""
    slow = f"on {kind} the scan runs as torch operations, many times slower than a kernel"
    if kind != "cpu":
        return f"{slow}: `mtrkit doctor` lists the packages that bring one"
    return (
        f"{slow} ({library().missing}): install mtrkit again with `pip install --force-reinstall --no-deps .` in its "
        "clone, which compiles the kernel"
    )


def writes_runs_out(name: str) -> bool:
    """Whether tokens that last several positions are written out for this backend, which costs the scan its saving."""
    return not _named(name).steps_through_runs


def stepping_kernels(x: Tensor) -> str:
    """Name of the kernels that take tokens like ``x`` which last several positions as they are; empty if none do."""
    if under_transform():
        return ""
    name = backend_of(x.device.type, x.dtype)
    stepping = name == TRITON or (name == NATIVE and _compiled(x.device.type, x.dtype))
    return name if stepping else ""


@constant_result
def _compiled(device: str, dtype: torch.dtype) -> bool:
    return compiled_for(device, dtype)


def length_last(device: torch.device) -> bool:
    """Whether the backend for ``device`` reads (B, E, L) tensors fastest with tokens as neighbours in memory.

    If not, channels should be neighbours: a (B, L, E) tensor seen through ``transpose(1, 2)``.
    """
    return _named(_choose(_forced, device.type, torch.float32)).length_last


def choose_backend(requested: str, x: Tensor) -> Backend:
    """The backend for tensors like ``x``; ``requested`` is a name, or "auto" for the forced or the best."""
    name = _forced if requested == "auto" else requested
    if under_transform():
        if name not in ("auto", "reference"):
            raise BackendError(
                f"scan backend {name!r} has derivatives for backward passes only, and torch.func or forward-mode "
                'differentiation is at work; use backend="auto", which then takes "reference"'
            )
        name = "reference"
    return _named(_choose(name, x.device.type, x.dtype))


@constant_result  # a compiler opens a transform that it traces, so it can be asked for
def under_transform() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work.

    They take operators apart, and silently lose what goes through one that they know only from outside.
    """
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def standard_only() -> bool:
    """Whether only operators are wanted that a transform can take apart, or that another runtime knows."""
    return _forced in _STANDARD or under_transform()


def can_look(x: Tensor) -> bool:
    """Whether the host may look at numbers: nothing records operators for other data, or stands for the data."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.is_meta or under_transform():
        return False
    return not (dispatch_modes() - COUNTERS) and torch._C._get_tracing_state() is None


@constant_result  # compile takes the answer, not the import machinery behind it
def _choose(name: str, device: str, dtype: torch.dtype) -> str:
    return _chosen(name, device, dtype)


@lru_cache  # asked before every operator, and what is installed does not change
def _chosen(name: str, device: str, dtype: torch.dtype) -> str:
    if name == "auto":
        return _best(device, dtype)
    backend = _named(name)
    _require_available(backend)
    refusal = backend.refuses(device, dtype)
    if refusal:
        raise _refused(backend, refusal)
    return name


def _best(device: str, dtype: torch.dtype) -> str:
    best = next(b for b in BACKENDS if _may_choose(b, device) and not b.refuses(device, dtype) and b.status()[0])
    _logger.debug("scan backend for %s tensors of %s: %s (%s)", device, dtype, best.name, best.status()[1])
    return best.name


def _may_choose(backend: Backend, device: str) -> bool:
    return backend.chosen_on is None or device in backend.chosen_on


def _require_available(backend: Backend) -> None:
    available, reason = backend.status()
    if not available:
        raise _refused(backend, reason)


def _refused(backend: Backend, reason: str) -> BackendError:
    return BackendError(f'scan backend {backend.name!r} cannot run here: {reason}; use backend="auto"', reason)
