"""Backend ``mamba_ssm``: the CUDA kernels of mamba_ssm and causal_conv1d as they are installed, untouched.

Works with every release whose ``selective_scan_fn`` can be imported. An installation that is broken in
whatever way (built for another torch, no extension, a missing dependency) is a reason not to use it, never a
crash.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mtrkit.dynamo import constant_result
from mtrkit.scan import operators
from mtrkit.scan.backend import COUNTERS, Backend, dispatch_modes
from mtrkit.scan.kernels import NATIVE, TRITON
from mtrkit.triton import availability
from mtrkit.types import Scan

_SCAN_MODULE = "mamba_ssm.ops.selective_scan_interface"


@lru_cache(maxsize=3)
def _find(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """A function of an optional package, or None and why it is not there."""
    try:
        return getattr(importlib.import_module(module), name), ""
    except Exception as error:  # a broken extension raises anything: ImportError, OSError, RuntimeError, NameError
        return None, f"{module.partition('.')[0]} cannot be imported ({type(error).__name__}: {error})"


def _status() -> tuple[bool, str]:
    found, reason = _find(_SCAN_MODULE, "selective_scan_fn")
    if found is None:
        return False, reason
    if _find(_SCAN_MODULE, "selective_scan_cuda")[0] is None:
        return False, "mamba_ssm is installed without its CUDA extension selective_scan_cuda"
    conv, why = _find("causal_conv1d", "causal_conv1d_fn")
    return True, "CUDA kernels for scan and convolution" if conv else f"CUDA kernel for the scan only: {why}"


def _refuses(device: str, dtype: torch.dtype) -> str:
    if device != "cuda":
        return f"it takes CUDA tensors only, and these are on {device!r}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16 only, not {dtype}"
    return ""


def _scan(scan: Scan) -> tuple[Tensor, Tensor]:
    if _is_counted():
        return operators.selective_scan(scan)
    # The kernel wants u, delta, B, C and z in one dtype and the parameters in float32; it knows one direction
    # only.
    dtype, reverse = scan.u.dtype, scan.reverse
    u, delta, B, C = (_ordered(x, dtype, reverse) for x in (scan.u, scan.delta, scan.B, scan.C))
    function = _find(_SCAN_MODULE, "selective_scan_fn")[0]
    assert function is not None
    y, last = function(
        u,
        delta,
        scan.A.float(),
        B,
        C,
        D=None if scan.D is None else scan.D.float(),
        z=None if scan.z is None else _ordered(scan.z, dtype, reverse),
        delta_bias=None if scan.bias is None else scan.bias.float(),
        delta_softplus=scan.softplus,
        return_last_state=True,
    )
    return (y.flip(-1) if reverse else y), last


def _is_counted() -> bool:
    """Whether FLOPs are counted, by a mode that does not see the kernels of other packages: ours run in their place."""
    return not torch.compiler.is_compiling() and bool(COUNTERS & dispatch_modes())


def _ordered(x: Tensor, dtype: torch.dtype, reverse: bool) -> Tensor:
    x = x.to(dtype)
    return x.flip(-1) if reverse else x


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    function = _find("causal_conv1d", "causal_conv1d_fn")[0]
    if function is None or _is_counted() or not 2 <= weight.shape[1] <= 4:  # the widths its kernel is built for
        return operators.causal_conv1d(x, weight, bias, silu, reverse, _other_kernels(x.device.type, x.dtype))
    source = x.flip(-1) if reverse else x
    # By keyword: the fourth positional argument has changed its meaning between releases.
    y: Tensor = function(source, weight.contiguous(), bias=bias, activation="silu" if silu else None)
    return y.flip(-1) if reverse else y


@constant_result
def _other_kernels(device: str, dtype: torch.dtype) -> str:
    """Those that convolve on a GPU where causal_conv1d does not."""
    return TRITON if not availability.refusal(device, dtype) and availability.status()[0] else NATIVE


BACKEND = Backend("mamba_ssm", _status, _refuses, _scan, _conv, operators.delta_softplus, length_last=True)
