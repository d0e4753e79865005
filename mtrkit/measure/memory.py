"""Memory of a forward pass: how much it takes, and how to keep the operating system out of its time."""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

RunPass = Callable[[], object]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back between passes; elsewhere, and twice, do nothing.

    By default it returns the large tensors of one pass and asks for fresh pages in the next. How often it does so
    depends on what ran before, and costs up to a third of a forward pass on a CPU, dense and reduced alike. For a
    service the environment variables ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_MMAP_THRESHOLD_`` do the same.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries, such as musl
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def peak_memory(run: RunPass, device: torch.device, held: int = 0) -> int | None:
    """Largest number of bytes that torch holds during one call; ``None`` on devices other than GPUs and CPUs.

    Args:
        run: Makes one pass.
        device: Where it runs.
        held: Bytes that torch holds before it, such as weights and input: on a CPU it does not say how many.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return held + _peak_on_cpu(run) if device.type == "cpu" else None


def _peak_on_cpu(run: RunPass) -> int:
    """Bytes that a call takes beyond what there was before, at most.

    In a thread of its own, as each one keeps its workspace (:mod:`mtrkit.native.workspace`): a pass with a smaller one
    would take none after a pass with a larger one.
    """

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or torch's profiler writes lines of its own to the terminal

    def watched() -> list[tuple[int, int]]:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            run()
        events = recorded.profiler.kineto_results.events()
        return [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]

    with ThreadPoolExecutor(max_workers=1) as thread:
        changes = thread.submit(watched).result()
    return max(accumulate((size for _, size in sorted(changes)), initial=0))
