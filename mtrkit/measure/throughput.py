"""How long models take for the same batch: measured in turns, in one process, after a warm-up.

On a busy or throttling machine the speed drifts by more than the differences of interest. So every round times
each model once, one right after the other, rounds start with another model each time, and speeds are compared
within a round before the median over the rounds is taken.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrkit.measure.memory import RunPass, keep_freed_memory
from mtrkit.measure.precision import Precision


def forward_pass(model: Callable[[Tensor], object], x: Tensor, precision: Precision) -> RunPass:
    """A function that runs the model on one batch, already where and what it has to be."""

    @torch.inference_mode()
    def run() -> object:
        with precision.context(x.device):
            return model(x)

    return run


def interleave(
    passes: Mapping[str, RunPass], device: torch.device, *, rounds: int, seconds: float
) -> Iterator[dict[str, float]]:
    """Yield, per round, how many seconds one call of each function takes.

    A caller that stops early, or is interrupted, keeps the rounds that it got.

    Args:
        passes: Name → a forward pass; the names must not change between rounds.
        device: Where they run: CUDA events on a GPU, the performance counter elsewhere.
        rounds: Number of rounds.
        seconds: How long each function is repeated per round, at least; it is called once in any case.
    """
    keep_freed_memory()
    repeats = {name: _warm_up(run, device, seconds) for name, run in passes.items()}
    names = list(passes)
    for index in range(rounds):
        start = index % len(names)
        order = names[start:] + names[:start]
        taken = {name: _time(passes[name], device, repeats[name]) for name in order}
        yield {name: taken[name] for name in names}


@dataclass(frozen=True)
class Timing:
    """What the rounds say about one model, in images per second and relative to another."""

    images_per_second: float
    milliseconds: float  # per batch
    quartiles: tuple[float, float]  # first and third, of images per second
    speedup: float
    speedup_quartiles: tuple[float, float]
    rounds: int


def summarise(rounds: Sequence[Mapping[str, float]], name: str, dense: str, batch_size: int) -> Timing:
    """Medians and quartiles over the rounds; the speed-up is the median of the ratios within each round."""
    rates = [batch_size / taken[name] for taken in rounds]
    ratios = [taken[dense] / taken[name] for taken in rounds]
    return Timing(
        statistics.median(rates),
        1000 * batch_size / statistics.median(rates),
        _quartiles(rates),
        statistics.median(ratios),
        _quartiles(ratios),
        len(rounds),
    )


def _warm_up(run: RunPass, device: torch.device, seconds: float) -> int:
    """Run until caches, kernels and clocks have settled; return how many calls fill ``seconds``."""
    run()
    repeats, taken = 1, _time(run, device, 1)
    while repeats * taken < seconds:
        repeats = max(repeats + 1, min(10 * repeats, round(seconds / max(taken, 1e-7))))
        taken = _time(run, device, repeats)
    return repeats


def _time(run: RunPass, device: torch.device, repeats: int) -> float:
    """Seconds per call."""
    return (_time_cuda if device.type == "cuda" else _time_clock)(run, device, repeats) / repeats


def _time_cuda(run: RunPass, device: torch.device, repeats: int) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000


def _time_clock(run: RunPass, device: torch.device, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begin


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
