"""What ``draw`` shows: the answers, traces, costs and speeds of a model and its reductions on the given inputs."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrkit.api import trace_reduction
from mtrkit.cli.console import say
from mtrkit.cli.inputs import Seen, name_of
from mtrkit.errors import OptionError, ScheduleError
from mtrkit.measure import Precision, forward_pass, interleave, summarise
from mtrkit.measure.candidates import DENSE, Candidate, candidates
from mtrkit.measure.labels import class_labels
from mtrkit.vis import Answer, Cost, Pass, Shown

RATIO = 0.3
SLIDER = (0.1, 0.2, 0.3, 0.4, 0.5)

_TOP = 5
_FULL = Precision("float32")


@dataclass(frozen=True)
class Drawn:
    """All that a picture or a page needs.

    Attributes:
        inputs: With the dense model's answers.
        passes: Of the reductions over them.
        dense: What the dense model costs.
    """

    inputs: list[Shown]
    passes: list[Pass]
    dense: Cost


def trace_all(args: argparse.Namespace, model: nn.Module, seen: Sequence[Seen], rounds: int) -> Drawn:
    """Run the dense model and its reductions on the inputs; time them in as many rounds, 0 for none."""
    batch = torch.stack([each.tensor for each in seen])
    dense, *reduced = wanted_candidates(args, model)
    with torch.inference_mode():
        logits = dense.model(batch)
    labels = class_labels(args.model, args.checkpoint, logits.shape[-1])
    inputs = [
        Shown(each.frames, name_of(path), top, each.times)
        for path, each, top in zip(args.images, seen, _answers(logits, labels), strict=True)
    ]
    cost = _costs([dense, *reduced], batch, rounds)
    passes = [_traced(each, batch, labels, cost(each)) for each in reduced]
    return Drawn(inputs, passes, cost(dense))


def check_amounts(args: argparse.Namespace) -> None:
    """Raise :class:`OptionError` if nothing is to be removed."""
    if args.ratio is not None and not any(args.ratio) and not args.r:
        raise OptionError("a ratio of 0 reduces nothing, so there is nothing to draw; give --ratio above 0")


def wanted_candidates(args: argparse.Namespace, model: nn.Module) -> list[Candidate]:
    """The dense model and its reductions; without --ratio, for a page those that every method reaches.

    Raises:
        ScheduleError: None of these is within reach.
    """
    ratios = args.ratio
    if ratios is None:
        ratios = [] if args.r else [RATIO] if args.page is None else _reachable(args, model)
    return candidates(model, args.method, ratios, args.layers, dict(args.option), args.r)


def _reachable(args: argparse.Namespace, model: nn.Module) -> list[float]:
    for count in range(len(SLIDER), 1, -1):
        try:
            candidates(model, args.method, SLIDER[:count], args.layers, dict(args.option))
        except ScheduleError as error:
            say(f"ratio {SLIDER[count - 1]:g} is left out: {error}")
        else:
            return list(SLIDER[:count])
    return [SLIDER[0]]


def _answers(logits: Tensor, labels: Sequence[str] | None) -> list[list[Answer]]:
    """For each input the likeliest classes, by name if that is known."""
    probabilities, numbers = logits.float().softmax(dim=-1).topk(min(_TOP, logits.shape[-1]))
    each = zip(numbers.tolist(), probabilities.tolist(), strict=True)
    return [[Answer(_label(n, labels), p) for n, p in zip(*top, strict=True)] for top in each]


def _label(number: int, labels: Sequence[str] | None) -> str:
    return f"class {number}" if labels is None else labels[number]


def _traced(candidate: Candidate, batch: Tensor, labels: Sequence[str] | None, cost: Cost) -> Pass:
    with torch.inference_mode(), trace_reduction(candidate.model) as trace:
        tops = _answers(candidate.model(batch), labels)
    amount = candidate.amount if "=" in candidate.amount else f"ratio {candidate.amount}"
    return Pass(candidate.method, amount, trace, tops, cost)


def _costs(found: Sequence[Candidate], batch: Tensor, rounds: int) -> Callable[[Candidate], Cost]:
    """A function that tells what a candidate costs, and how fast it is on these inputs if there are rounds."""
    if not rounds:
        return lambda candidate: Cost(candidate.gflops)
    passes = {each.name: forward_pass(each.model, batch, _FULL) for each in found}
    taken = list(interleave(passes, batch.device, rounds=rounds, seconds=0.1))

    def cost(candidate: Candidate) -> Cost:
        timing = summarise(taken, candidate.name, DENSE, len(batch))
        return Cost(candidate.gflops, timing.images_per_second, timing.speedup)

    return cost
