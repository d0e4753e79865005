"""What a scan backend is. Adding one: a file that makes a :class:`Backend`, and a line in ``dispatch.py``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mtrkit.types import Scan


class BackendStatus(NamedTuple):
    """One line of :func:`mtrkit.scan_backends`."""

    name: str
    available: bool
    reason: str


def dispatch_modes() -> set[str]:
    """Names of the classes of the modes that see every operator before it runs, such as ``"_FlopCounterMode"``."""
    return {type(torch._C._get_dispatch_stack_at(i)).__name__ for i in range(torch._C._len_torch_dispatch_stack())}


COUNTERS = frozenset({"_FlopCounterMode", "FlopCounterMode"})
"""Dispatch modes that count what they see, and change and record nothing."""


@dataclass(frozen=True)
class Backend:
    """One implementation of scan and convolution.

    Attributes:
        name: What users call it.
        status: Returns whether it can run in this installation, and why or why not. It is asked often and
            caches what is slow. It must not raise: an error inside becomes the reason.
        refuses: Returns why it cannot take tensors of this device type and dtype, or an empty string if it
            can.
        scan: Takes a :class:`~mtrkit.types.Scan`; returns the output (B, E, L) in the dtype of u and the state
            (B, E, N) after the token visited last.
        conv: Takes (x, weight (E, K), bias, silu, reverse).
        softplus: Takes (delta (B, E, L), bias (E,) or ``None``); returns softplus of their sum like delta.
        length_last: Whether it reads (B, E, L) tensors fastest when tokens, not channels, are neighbours in
            memory.
        steps_through_runs: Whether tokens that last several positions are not written out.
        chosen_on: Types of devices on which ``"auto"`` may take it. Default: all that it takes.
    """

    name: str
    status: Callable[[], tuple[bool, str]]
    refuses: Callable[[str, torch.dtype], str]
    scan: Callable[[Scan], tuple[Tensor, Tensor]]
    conv: Callable[[Tensor, Tensor, Tensor | None, bool, bool], Tensor]
    softplus: Callable[[Tensor, Tensor | None], Tensor]
    length_last: bool = False
    steps_through_runs: bool = False
    chosen_on: tuple[str, ...] | None = None
