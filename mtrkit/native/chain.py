"""Jobs of the compiled library that run one after the other in one call."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtrkit.errors import InputError
from mtrkit.native import library


class Chain:
    """What is to run, and all that has to live until it has.

    What a job writes is there only after :meth:`run`; as a context it runs at the end.
    """

    def __init__(self) -> None:
        self.jobs: list[library.Job] = []
        self._held: list[Any] = []
        self._memory: dict[str, Tensor] = {}
        self._wrong = ctypes.c_int64(0)
        self._limit = 0

    def add(self, kind: int, job: bytes, *held: Any) -> None:
        """Append a job, and hold what it reads and writes."""
        self.jobs.append((kind, job))
        self._held.append(held)

    def memory(self, name: str, shape: Sequence[int]) -> Tensor:
        """Memory for floats of this shape. The next call with this name reuses it: add all jobs that read it before."""
        count, kept = math.prod(shape), self._memory.get(name)
        if kept is None or kept.numel() < count:
            kept = self._memory[name] = torch.empty(count, dtype=torch.float32, device="cpu")
        return kept[:count].view(shape)

    def wrong(self, limit: int) -> int:
        """Where a job notes that it was given a position outside of 0 … limit − 1."""
        self._limit = max(self._limit, limit)
        return ctypes.addressof(self._wrong)

    def run(self) -> None:
        """Run all jobs, and raise :class:`InputError` if one was given what it cannot take."""
        library.library().run(*self.jobs)
        if self._wrong.value:
            raise InputError(
                f"a reduction names a token or slot outside of 0 … {self._limit - 1}, or a special token twice; give "
                "positions in the sequence"
            )

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.run()
