"""The compiled library: finding it, its instruction-set levels, and the threads it runs on.

The library is plain C without Python or torch headers, so one build serves every Python and torch version.
ctypes releases the interpreter lock during a call.
"""

import ctypes
import glob
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mtrkit.errors import BackendError
from mtrkit.native import jobs

LEVELS = ("baseline", "avx2", "avx512")
BLOCK = 16  # channels handled together in C
TILE = 16  # time steps handled together in C; states are checkpointed once per tile
TEAM_BLOCKS = 4  # channel blocks whose gradients of B and C are summed in one task
SCAN_FORWARD, SCAN_BACKWARD, CONV_FORWARD, CONV_BACKWARD, SUM, SOFTPLUS = range(6)  # kinds of jobs
PROJECT, PACK, NORM, MATCH, COSINES, SLOTS, MERGE, SPLIT = range(6, 14)
BY_TURNS, NEIGHBORS, LINKS, FOLLOW, ROUND, ADD, NARROW, MIXER = range(14, 22)

_LAYOUT = [TILE, BLOCK, TEAM_BLOCKS, *(fields.size for fields in jobs.LAYOUT)]

_level: int | None = None  # set by tests to run the code of a weaker CPU


Job = tuple[int, bytes]  # its kind, and what jobs.py packed


class Library:
    """The loaded library, or the reason why there is none in ``missing``."""

    def __init__(self) -> None:
        self.missing = ""
        self._handle: Any = None
        try:
            self._handle = _open()
        except (OSError, AttributeError, BackendError) as error:
            self.missing = str(error)
            return
        self.best_level: int = self._handle.mtr_best_level()
        self._multiplies_halves = bool(self._handle.mtr_has_half_products())
        self._parallel = _openmp_parallel()

    def multiplies_halves(self) -> bool:
        """Whether the level in use has instructions for products of bfloat16."""
        return self._multiplies_halves and current_level() == 2

    def run(self, *chain: Job) -> None:
        """Run packed jobs one after the other on as many threads as torch uses; a mixer becomes several."""
        packed, count = _lay_out(chain), len(chain)
        if all(kind != MIXER for kind, _ in chain):
            self._run(packed, count)
            return
        expanded = ctypes.create_string_buffer(self._handle.mtr_expanded_size(packed, count))
        self._run(expanded, self._handle.mtr_expand(packed, count, expanded))

    def _run(self, chain: Any, count: int) -> None:
        level, threads = current_level(), torch.get_num_threads()
        shared = (ctypes.c_int64 * (1 + 2 * count))()
        if threads == 1 or self._parallel is not None:
            self._handle.mtr_run(level, chain, count, shared, self._parallel, threads)
        else:
            _run_on_pool(lambda: self._handle.mtr_join(level, chain, count, shared), threads)
        if shared[0]:
            raise MemoryError("mtrkit: no memory for the scratch buffers of a scan")


def _lay_out(chain: Sequence[Job]) -> bytes:
    return b"".join([jobs.HEADER.pack(kind, len(job)) + job for kind, job in chain])


@lru_cache(maxsize=1)
def library() -> Library:
    """Load the library on first use."""
    return Library()


def current_level() -> int:
    """Index into ``LEVELS`` of the instruction set in use."""
    return library().best_level if _level is None else _level


def _open() -> Any:
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    path = Path(__file__).with_name("_native" + suffix)
    if not path.exists():
        raise BackendError(f"no compiled library {path.name} in this installation")
    handle = ctypes.CDLL(str(path))
    found = (ctypes.c_int64 * 256)()  # another version may have more sizes to tell
    handle.mtr_layout.argtypes = (ctypes.c_void_p,)
    handle.mtr_layout(found)
    if list(found[: len(_LAYOUT) + 1]) != [*_LAYOUT, 0]:
        raise BackendError(f"the compiled library {path.name} is of another version; install mtrkit again")
    joining: tuple[Any, ...] = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p)
    handle.mtr_join.argtypes = joining
    handle.mtr_run.argtypes = (*joining, ctypes.c_void_p, ctypes.c_int)
    handle.mtr_join.restype = handle.mtr_run.restype = None
    handle.mtr_expanded_size.argtypes = (ctypes.c_char_p, ctypes.c_int64)
    handle.mtr_expand.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_void_p)
    handle.mtr_expanded_size.restype = handle.mtr_expand.restype = ctypes.c_int64
    return handle


def _openmp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime of torch, so that both share one team of threads."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    bundled = [
        path
        for pattern in ("*gomp*", "libomp*", "*iomp5*")
        for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", pattern))
    ]
    for name in (*bundled, "libgomp.so.1", "libomp.so", "libiomp5.so"):
        try:
            runtime = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _run_on_pool(join: Callable[[], None], threads: int) -> None:
    helpers = [_helpers().submit(join) for _ in range(threads - 1)]
    join()
    for helper in helpers:
        # A helper that is still queued behind another caller's has nothing left to do.
        if not helper.cancel():
            helper.result()


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="mtrkit")
        return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
