"""The sets of kernels that the operators may run on, by name: one per way of computing what they all need."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import scan as native_scan
from mtrkit.native import tokens as native_tokens
from mtrkit.native.library import library
from mtrkit.native.tokens import Merge
from mtrkit.scan import torch_conv, torch_scan

NATIVE, TRITON = "native", "triton"


class Kernels(NamedTuple):
    """One implementation of scan and convolution; the functions' last argument, if any, are lengths of tokens."""

    scan_forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    scan_backward: Callable[..., tuple[Tensor, ...]]
    checkpoint_shape: Callable[..., Any]
    conv_forward: Callable[..., Tensor]
    conv_backward: Callable[..., tuple[Tensor, ...]]
    softplus_forward: Callable[[Tensor, Tensor | None], Tensor]


class TokenKernels(NamedTuple):
    """One implementation of what a reduction does with tokens."""

    nearest: Callable[[Tensor, Tensor, Tensor], Tensor]
    cosines: Callable[[Tensor, Tensor, Tensor], Tensor]
    merge: Callable[[Sequence[Merge], Tensor, int], list[Tensor]]
    number: Callable[[int, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


C = Kernels(
    native_scan.scan_forward,
    native_scan.scan_backward,
    native_scan.checkpoint_shape,
    native_scan.conv_forward,
    native_scan.conv_backward,
    native_scan.softplus_forward,
)
TORCH = Kernels(
    torch_scan.scan_forward,
    torch_scan.scan_backward,
    torch_scan.checkpoint_shape,
    torch_conv.conv_forward,
    torch_conv.conv_backward,
    torch_scan.softplus_forward,
)
C_TOKENS = TokenKernels(native_tokens.nearest, native_tokens.cosines, native_tokens.merge, native_tokens.number)


def kernels_for(x: Tensor, name: str = NATIVE) -> Kernels:
    """The kernels of that name; of the native ones the compiled library where it can run, torch elsewhere."""
    if name == TRITON:
        return triton_kernels().single
    if name != NATIVE:
        raise InputError(f"there are no kernels {name!r}; those of operators are {NATIVE!r} and {TRITON!r}")
    return C if compiled_for(x.device.type, x.dtype) else TORCH


def token_kernels(name: str) -> TokenKernels:
    """Those for tokens; the native ones are the compiled library's."""
    return triton_kernels().tokens if name == TRITON else C_TOKENS


def compiled_for(device: str, dtype: torch.dtype) -> bool:
    """Whether the compiled library takes such tensors: on a CPU, but for float64, if it is there."""
    return device == "cpu" and dtype != torch.float64 and not library().missing


class WholeKernels(NamedTuple):
    """What runs in one call what is otherwise a chain of operators."""

    mix: Callable[..., list[Tensor]]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class TritonKernels(NamedTuple):
    """All that Triton does here."""

    single: Kernels
    tokens: TokenKernels
    whole: WholeKernels


@lru_cache
def triton_kernels() -> TritonKernels:
    """Imports Triton, which takes longer than importing mtrkit, and is optional."""
    from mtrkit.triton import conv, mixer, norm, scan, tokens

    return TritonKernels(
        Kernels(
            scan.scan_forward,
            scan.scan_backward,
            scan.checkpoint_shape,
            conv.conv_forward,
            conv.conv_backward,
            mixer.softplus_forward,
        ),
        TokenKernels(tokens.nearest, tokens.cosines, tokens.merge, tokens.number),
        WholeKernels(mixer.mix, norm.add_rms_norm),
    )
