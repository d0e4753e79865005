"""Measure accuracy and speed of a model and its reductions, one row each, and remember which images were right."""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from mtrkit.errors import OptionError
from mtrkit.measure.accuracy import batches, check_classes, images_per_batch, predict, score
from mtrkit.measure.candidates import DENSE, Candidate
from mtrkit.measure.images import ImageSet
from mtrkit.measure.machine import describe_machine
from mtrkit.measure.memory import RunPass
from mtrkit.measure.precision import Precision
from mtrkit.measure.preprocess import Preprocess
from mtrkit.measure.processes import ONE, Processes
from mtrkit.measure.results import KEY, Results, Row, configuration_key
from mtrkit.measure.throughput import forward_pass, interleave, summarise
from mtrkit.measure.weights import weights_digest

Advance = Callable[[int], object]  # called with the number of images that are done since the last call
_TIMED_BY = ("batch_size", "timed_beside", "device", "threads", "scan_reason")  # what a speed depends on


@dataclass(frozen=True)
class Evaluation:
    """What is the same for all candidates of one model.

    Attributes:
        model: Its name.
        checkpoint: Its weights, as they were given.
        images: What to classify.
        preprocess: Turns an image into the model's input.
        precision: What the weights are in.
        batch_size: Images per call.
        workers: Threads that read images.
        rounds: Rounds of timing; 0 for none.
        command: The command line.
        processes: That share the images.
    """

    model: str
    checkpoint: str
    images: ImageSet
    preprocess: Preprocess
    precision: Precision
    batch_size: int
    workers: int
    rounds: int
    command: str
    processes: Processes = ONE

    def timed_pass(self, model: nn.Module) -> RunPass:
        """A function that runs a model on the first batch, in memory."""
        first = next(batches(self.images, self.preprocess, self.batch_size))[: self.batch_size]
        return forward_pass(model, first.to(next(model.parameters()).device, self.precision.weights), self.precision)

    @property
    def timed_inputs(self) -> int:
        """How many images, or views of videos, are in that batch."""
        together = min(images_per_batch(self.preprocess, self.batch_size), len(self.images))
        return min(self.batch_size, together * self.preprocess.views)


class Reference(NamedTuple):
    """The dense model that the others are timed in turns with: their speed-ups are relative to it."""

    evaluation: Evaluation
    model: nn.Module


def measure(
    evaluation: Evaluation,
    dense: nn.Module,
    candidates: Sequence[Candidate],
    results: Results,
    reference: Reference | None = None,
    progress: Callable[[str], Advance] = lambda name: lambda done: None,
) -> Iterator[Row]:
    """Yield one row per candidate: from the results if it is there, else measured and added to them.

    A row that was timed otherwise, with another batch size, number of threads, processor, set of instructions or
    neighbour, is timed again.

    If several processes measure, each classifies its share of the images, and every one of them gets the answers for
    all; the main process alone times, while the others wait.

    Args:
        evaluation: How.
        dense: The model that the candidates are made of.
        candidates: What.
        results: What is measured already; the main process's counts.
        reference: What speed-ups are relative to. Default: ``dense``.
        progress: Called with the name of a candidate before it is measured; returns what is called with the size of
            each batch once it is done. Default: nothing.

    Raises:
        InputError: The model has another number of classes than there are folders of images.
        OptionError: Several processes, and a threshold.
    """
    reference = Reference(evaluation, dense) if reference is None else reference
    check_classes(cast(int, dense.num_classes), evaluation.images)
    if evaluation.processes.count > 1 and any(candidate.threshold is not None for candidate in candidates):
        raise OptionError(
            "with a threshold the images of a batch share how many tokens leave, so several processes would not give "
            "what one gives; start one"
        )
    device = next(dense.parameters()).device
    same = {
        "model": evaluation.model,
        "weights": weights_digest(dense),
        "data": evaluation.images.digest,
        "preprocess": str(evaluation.preprocess),
        "dtype": evaluation.precision.name,
        "device": str(device),
    }
    for candidate in candidates:
        key = _key(evaluation, same, candidate)
        row = evaluation.processes.agree(results.find(key))
        if row is None:
            row = {KEY: key} | _measure(evaluation, candidate, progress(candidate.name))
        elif not evaluation.rounds or evaluation.processes.agree(_is_timed_so(row, evaluation, reference, device)):
            yield row
            continue
        timed = _speed(evaluation, candidate, reference) | {"command": evaluation.command}
        row = row | timed | describe_machine(device)
        results.add(row)
        yield row


def right_images(row: Row) -> Tensor:
    """(n,) bool, which images the candidate of this row classified rightly."""
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=int(row["n"])).astype(bool))


def pack_right(right: Tensor) -> str:
    """The inverse of :func:`right_images`: (n,) bool as the text that rows keep, one bit per image in base64."""
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()


def _measure(evaluation: Evaluation, candidate: Candidate, advance: Advance) -> Row:
    """All but the speed."""
    predicted = predict(
        candidate.model,
        evaluation.images,
        evaluation.preprocess,
        batch_size=evaluation.batch_size,
        precision=evaluation.precision,
        workers=evaluation.workers,
        progress=advance,
        processes=evaluation.processes,
    )
    candidate = candidate.measured()
    return {
        **_description(evaluation, candidate),
        **_answers(predicted, evaluation.images),
        "gflops": candidate.gflops,
        "promised_speedup": candidate.promised,
    }


def _description(evaluation: Evaluation, candidate: Candidate) -> Row:
    """What was measured."""
    return {
        "model": evaluation.model,
        "checkpoint": evaluation.checkpoint,
        "data": evaluation.images.name,
        **({"views": evaluation.preprocess.views} if evaluation.preprocess.views > 1 else {}),
        "dtype": evaluation.precision.name,
        "method": candidate.method,
        "amount": candidate.amount,
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "options": json.dumps(dict(candidate.options)),
        "layers": list(candidate.info.layers) if candidate.info else [],
        "tokens": list(candidate.info.tokens) if candidate.info else [],
    }


def _answers(predicted: Tensor, images: ImageSet) -> Row:
    """How many of the predicted classes (n,) are right, how sure that is, and which."""
    accuracy = score(predicted, images)
    low, high = accuracy.interval
    return {
        "top1": accuracy.share,
        "top1_low": low,
        "top1_high": high,
        "correct": accuracy.correct,
        "n": accuracy.n,
        "right": pack_right(predicted == torch.tensor(images.labels)),
    }


def _is_timed_so(row: Row, evaluation: Evaluation, reference: Reference, device: torch.device) -> bool:
    """Whether a row's speed is what would be measured now; from a CSV file all is text."""
    now = {"batch_size": evaluation.timed_inputs, "timed_beside": reference.evaluation.model} | describe_machine(device)
    return all(str(row.get(name)) == str(now[name]) for name in _TIMED_BY)


def _speed(evaluation: Evaluation, candidate: Candidate, reference: Reference) -> Row:
    """Images per second as the main process measures them, if there are to be rounds."""
    timed = _time(evaluation, candidate, reference) if evaluation.rounds and evaluation.processes.main else {}
    return evaluation.processes.agree(timed)


def _time(evaluation: Evaluation, candidate: Candidate, reference: Reference) -> Row:
    """Images per second of one candidate, in turns with the reference, on one batch in memory."""
    name, dense = f"{evaluation.model} {candidate.name}", f"{reference.evaluation.model} {DENSE}"
    passes = {
        dense: reference.evaluation.timed_pass(reference.model),
        name: evaluation.timed_pass(candidate.model),
    }
    device = next(reference.model.parameters()).device
    rounds = list(interleave(passes, device, rounds=evaluation.rounds, seconds=0.1))
    count = evaluation.timed_inputs
    timing = summarise(rounds, name, dense, count)
    return {"batch_size": count, "timed_beside": reference.evaluation.model} | dataclasses.asdict(timing)


def _key(evaluation: Evaluation, same: Row, candidate: Candidate) -> str:
    done = candidate.info
    reduction = {"method": candidate.method, "amount": candidate.amount}
    chosen: Row = {"options": done.options, "layers": done.layers} if done else {}
    chosen |= {name: value for name, value in candidate.options.items() if name == "calibration"}
    if candidate.threshold is not None:  # how many tokens leave is shared by the images of a batch
        chosen["batch_size"] = evaluation.batch_size
    return configuration_key(same | reduction | chosen)
