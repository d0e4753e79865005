"""A copy of the model that runs dense and reduced by turns, and what is compared of both."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mtrkit.adapters import Adapter, find_host
from mtrkit.api import apply_reduction, reduction_disabled, reduction_info, remove_reduction
from mtrkit.calibration.samples import divergence, log_answers
from mtrkit.errors import SmallModelWarning
from mtrkit.measure.processes import ONE, Processes
from mtrkit.measure.weights import twin
from mtrkit.ops import restore_sum, stream_tokens, take
from mtrkit.patch import Calibration, ReductionInfo
from mtrkit.schedule import Placement
from mtrkit.types import ReducedStream

T = TypeVar("T")


class Trial:
    """The model, the samples, and the dense answers once they are known.

    Args:
        model: Stays as it is; what runs shares its weights.
        samples: (N, …).
        wanted: Arguments of ``apply_reduction``, all but where to reduce.
        batch_size: Samples per pass.
        advance: Told the samples of each pass once it is done.
        processes: To which the batches are dealt out; every one of them gets the values of all.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Tensor,
        wanted: Mapping[str, Any],
        batch_size: int,
        advance: Callable[[int], object],
        processes: Processes = ONE,
    ) -> None:
        plain = cast(nn.Module, getattr(model, "_orig_mod", model))  # compiled, each placement would compile again
        self.model = remove_reduction(twin(plain)).eval()
        self.samples, self.wanted, self.batch_size, self.advance = samples, wanted, batch_size, advance
        self.processes = processes
        self.host, self.adapter = find_host(self.model)
        self._dense: dict[tuple[int, int], Tensor] = {}  # by first sample and the one after the last

    @property
    def info(self) -> ReductionInfo:
        """What was applied last."""
        found = reduction_info(self.model)
        assert found is not None
        return found

    def apply(self, layers: Sequence[int] | Placement | None) -> None:
        """Reduce after these blocks; by default the method's own."""
        self._apply(layers=layers, **self.wanted)

    def apply_calibration(self, calibration: Calibration) -> None:
        """Reduce as a calibration says."""
        self._apply(calibration=calibration)

    def _apply(self, **arguments: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallModelWarning)
            apply_reduction(self.model, **arguments)

    def divergence(self, start: int, stop: int) -> Tensor:
        """(stop − start,) divergence of the model as it is now from the dense one, on these samples."""

        def measure(batch: tuple[int, int]) -> Tensor:
            reduced = log_answers(self.model(self._batch(*batch)))
            return divergence(self._dense_answers(*batch), reduced).cpu()

        values = list(self._share(start, stop, measure))
        return torch.cat(values) if values else torch.empty(0)

    def features(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """What the head reads after the last block, (B, S, D), of the model as it is now and of the dense one."""

        def measure(batch: tuple[int, int]) -> tuple[Tensor, Tensor]:
            samples = self._batch(*batch)
            with _final_features(self.adapter, self.host) as found:
                self.model(samples)
                with reduction_disabled(self.model):
                    self.model(samples)
            reduced, dense = found
            return (reduced, dense) if self.processes.count == 1 else (reduced.cpu(), dense.cpu())

        device = next(self.model.parameters()).device
        return ((reduced.to(device), dense.to(device)) for reduced, dense in self._share(start, stop, measure))

    def _share(self, start: int, stop: int, do: Callable[[tuple[int, int]], T]) -> Iterator[T]:
        """What ``do`` makes of each batch, in order, whichever process did it."""
        batches = list(self._batches(start, stop))
        for (begin, end), done in zip(batches, self.processes.deal(batches, do), strict=True):
            self.advance(end - begin)
            yield done

    def _dense_answers(self, begin: int, end: int) -> Tensor:
        """Kept, unless they are one for every token or pixel."""
        if (begin, end) in self._dense:
            return self._dense[begin, end]
        with reduction_disabled(self.model):
            answers = log_answers(self.model(self._batch(begin, end)))
        if answers.dim() == 2:
            self._dense[begin, end] = answers
        return answers

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return ((begin, min(begin + self.batch_size, stop)) for begin in range(start, stop, self.batch_size))

    def _batch(self, begin: int, end: int) -> Tensor:
        """On the model's device; images in its dtype."""
        parameter, batch = next(self.model.parameters()), self.samples[begin:end]
        return batch.to(parameter) if batch.is_floating_point() else batch.to(parameter.device)


@contextmanager
def _final_features(adapter: Adapter, host: nn.Module) -> Iterator[list[Tensor]]:
    """Collect (B, S, D) of each pass inside the ``with`` block: the special tokens, or all if there are none."""
    found: list[Tensor] = []

    def keep(block: nn.Module, inputs: Any, output: Any) -> None:
        del block, inputs
        tokens = _tokens(output)
        special = torch.tensor(adapter.special_at(host)(tokens.shape[1]), dtype=torch.long, device=tokens.device)
        found.append(take(tokens, special.expand(len(tokens), -1)) if len(special) else tokens)

    handle = adapter.blocks(host)[-1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _tokens(output: Any) -> Tensor:
    """The features (B, L, D) on the full sequence, of whatever a last block returns."""
    if isinstance(output, ReducedStream):
        return restore_sum(output)
    if not isinstance(output, tuple):
        return output
    hidden, residual = (*output, None)[:2]
    return stream_tokens(hidden, residual) if isinstance(residual, Tensor | ReducedStream) else hidden
