"""Keep what the allocator has been given, so that timing does not time the operating system."""

import ctypes
import sys

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
