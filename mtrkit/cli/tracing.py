"""What ``draw`` shows: the answers, traces, costs and speeds of a model and its reductions on the given inputs."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrkit.api import trace_reduction
from mtrkit.cli.inputs import Seen, name_of
from mtrkit.cli.options import ratios
from mtrkit.cli.predictions import Prediction, answers, predictions
from mtrkit.errors import InputError, OptionError, ScheduleError
from mtrkit.measure import Precision, forward_pass, interleave, summarise
from mtrkit.measure.candidates import DENSE, Candidate, candidates
from mtrkit.measure.labels import class_labels
from mtrkit.measure.report import amount_in_words
from mtrkit.vis import Cost, Pass, Shown

RATIO = 0.3
SLIDER = (0.1, 0.2, 0.3, 0.4, 0.5)

_FULL = Precision("float32")


@dataclass(frozen=True)
class Drawn:
    """All that a picture or a page needs.

    Attributes:
        inputs: With the dense model's answers.
        passes: Of the reductions over them.
        dense: What the dense model costs.
        predictions: Of the dense model, then of each pass, one for each input.
    """

    inputs: list[Shown]
    passes: list[Pass]
    dense: Cost
    predictions: list[list[Prediction]]


def check_amounts(args: argparse.Namespace) -> None:
    """Raise :class:`OptionError` if nothing is to be removed."""
    if not any(ratios(args)) and not args.r and not args.threshold:
        raise OptionError("a ratio of 0 reduces nothing, so there is nothing to draw; give --ratio above 0")


def trace_all(args: argparse.Namespace, model: nn.Module, found: Sequence[Candidate], seen: Sequence[Seen]) -> Drawn:
    """Run the dense model and its reductions on the inputs; for a page they are timed too."""
    batch = torch.stack([each.tensor for each in seen])
    labels = class_labels(args.model, args.checkpoint, cast(Any, model).num_classes)
    dense, *reduced = found
    with torch.inference_mode():
        logits = [dense.model(batch)]
    inputs = [
        Shown(each.frames, name_of(path), top, each.times)
        for path, each, top in zip(args.images, seen, answers(logits[0], labels), strict=True)
    ]
    passes, speed = [], _speeds(found, batch, args.rounds if args.page else 0)
    for candidate in reduced:
        with torch.inference_mode(), trace_reduction(candidate.model) as trace:
            logits.append(candidate.model(batch))
        amount = amount_in_words(candidate.amount)
        if not trace.stages:
            raise InputError(f"{candidate.method} at {amount} finds nothing that similar; give a lower threshold")
        tops = answers(logits[-1], labels)
        passes.append(Pass(candidate.method, amount, trace, tops, speed(candidate.measured())))
    return Drawn(inputs, passes, speed(dense), [predictions(each, args, model) for each in logits])


def wanted_candidates(args: argparse.Namespace, model: nn.Module, left_out: Callable[[str], object]) -> list[Candidate]:
    """The dense model and its reductions; without an amount, for a page as many of the usual ones as are within reach.

    Args:
        args: Of the command.
        model: The dense model.
        left_out: Told in a sentence why the others are not.

    Raises:
        ScheduleError: A ratio is out of reach.
    """
    amounts = ratios(args)
    if args.page and args.ratio is None and any(amounts):
        amounts = _reachable(args, model, left_out)
    return candidates(model, args.method, amounts, args.layers, dict(args.option), args.r, thresholds=args.threshold)


def _reachable(args: argparse.Namespace, model: nn.Module, left_out: Callable[[str], object]) -> list[float]:
    found: list[float] = []
    for ratio in SLIDER:
        try:
            candidates(model, args.method, [ratio], args.layers, dict(args.option))
        except ScheduleError as error:
            if not found:
                raise
            left_out(f"the slider ends at {found[-1]:g}: {error}")
            break
        found.append(ratio)
    return found


def _speeds(found: Sequence[Candidate], batch: Tensor, rounds: int) -> Callable[[Candidate], Cost]:
    """A function that tells what a candidate costs, and how fast it is on these inputs if there are rounds."""
    if not rounds:
        return lambda candidate: Cost(candidate.gflops)
    passes = {each.name: forward_pass(each.model, batch, _FULL) for each in found}
    taken = list(interleave(passes, batch.device, rounds=rounds, seconds=0.1))

    def cost(candidate: Candidate) -> Cost:
        timing = summarise(taken, candidate.name, DENSE, len(batch))
        return Cost(candidate.gflops, timing.images_per_second, timing.speedup)

    return cost
