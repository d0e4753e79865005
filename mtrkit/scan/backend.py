"""What a scan backend is. Adding one: a file that makes a :class:`Backend`, and a line in ``dispatch.py``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class BackendStatus(NamedTuple):
    """One line of :func:`mtrkit.scan_backends`."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Backend:
    """One implementation of scan and convolution.

    Attributes:
        name: What users call it.
        status: Returns whether it can run in this installation, and why or why not. It is asked often and
            caches what is slow; whatever goes wrong inside is a reason, never an exception.
        refuses: Returns why it cannot take tensors of this device type and dtype, or an empty string if it
            can.
        scan: Takes the arguments of :func:`mtrkit.scan.scan_op` without ``backend``, with B and C as (B, G,
            N, L); returns the output and the last state.
        conv: Takes (x, weight (E, K), bias, silu, reverse).
        length_last: Whether it reads (B, E, L) tensors fastest when tokens, not channels, are neighbours in
            memory.
    """

    name: str
    status: Callable[[], tuple[bool, str]]
    refuses: Callable[[str, torch.dtype], str]
    scan: Callable[..., tuple[Tensor, Tensor]]
    conv: Callable[..., Tensor]
    length_last: bool = False
