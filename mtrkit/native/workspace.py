"""Memory for what lies between the steps of a mixer: each thread keeps one piece from call to call.

If every call asked the system for it, each 4 KB would cost a page fault. These took up to 40 % of a forward pass: how
much depended on the state of the process's heap.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from mtrkit.native.library import BLOCK

_KEPT = 128 << 20  # bytes at most; what is larger lives for one call


class _Thread(threading.local):
    memory: Tensor | None = None


_thread = _Thread()


def workspace(counts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Memory for so many floats each, and where each part lies; its content is anything.

    The caller holds the tensor until its job has run, and the next call of the thread may use the same memory.
    """
    starts, total = [], 0
    for count in counts:
        starts.append(total)
        total += -(-count // BLOCK) * BLOCK
    memory = _thread.memory
    if memory is None or memory.numel() < total:
        memory = torch.empty(total, dtype=torch.float32, device="cpu")
        _thread.memory = memory if 4 * total <= _KEPT else None
    return memory, [memory.data_ptr() + 4 * start for start in starts]
