"""Several processes that measure together, as ``torchrun`` or ``accelerate launch`` starts them; usually there is one.

Accelerate is imported only if there are more.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from mtrkit.errors import OptionError

T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True)
class Processes:
    """This process among those that measure together.

    Every process has to make the same calls in the same order; each call waits for all.

    Attributes:
        index: Of this one, from 0 on; 0 is the main process, which alone prints and writes.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the main process."""
        return self.index == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order; tensors have to be on the CPU."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def agree(self, value: T) -> T:
        """The main process's value."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def deal(self, work: Sequence[W], do: Callable[[W], T]) -> Iterator[T]:
        """What ``do`` makes of each piece of work, in order, on every process; each does every ``count``-th piece."""
        for first in range(0, len(work), self.count):
            mine = first + self.index
            done = self.gather(do(work[mine]) if mine < len(work) else None)
            yield from done[: len(work) - first]  # type: ignore[misc]  # no None is among these


ONE = Processes()


@contextmanager
def joined(device: torch.device | None = None) -> Iterator[Processes]:
    """This process among those that were started together, until the end of the ``with`` block.

    Each process has its own GPU as its current device, unless ``device`` is the CPU.

    Raises:
        OptionError: There are several processes and one GPU for all of them is asked for, or Accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ONE
        return
    if device is not None and device.index is not None:
        raise OptionError(
            f"several processes cannot share {device}; each takes its own GPU if you say cuda, or nothing"
        )
    state = _state(cpu=device is not None and device.type == "cpu")
    processes = Processes(state.process_index, state.num_processes)
    yield processes
    processes.agree(None)  # what the main process writes is there for all that comes after


def _state(cpu: bool) -> Any:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise OptionError(
            "several processes were started, and measuring together needs Accelerate: pip install 'mtrkit[train]'"
        ) from error
    if not torch.distributed.is_initialized():
        atexit.register(_leave)  # not before: another command of this program may follow
    return PartialState(cpu=cpu)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
