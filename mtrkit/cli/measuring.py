"""Measure accuracy and speed of a model and its reductions, one row each, and remember which images were right."""

import argparse
import base64
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mtrkit.cli.console import progress
from mtrkit.cli.loading import DENSE, Candidate
from mtrkit.cli.results import KEY, Results, Row, configuration_key
from mtrkit.measure import (
    ImageSet,
    Pass,
    Precision,
    Preprocess,
    batches,
    check_classes,
    describe_machine,
    forward_pass,
    interleave,
    open_images,
    predict,
    score,
    summarise,
    weights_digest,
)


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

    @classmethod
    def of(
        cls, args: argparse.Namespace, model: str, checkpoint: str, preprocess: Preprocess, precision: Precision
    ) -> "Evaluation":
        """What the options of ``eval`` and ``compare`` say, with what they say in different ways."""
        images = open_images(args.data).spread(args.limit)
        running = args.batch_size, args.workers, args.rounds, args.command_line
        return cls(model, checkpoint, images, preprocess, precision, *running)

    def timed_pass(self, model: nn.Module) -> Pass:
        """A function that runs a model on the first batch, in memory."""
        first = next(batches(self.images, self.preprocess, self.batch_size))
        return forward_pass(model, first.to(next(model.parameters()).device, self.precision.weights), self.precision)


Beside = tuple[Evaluation, nn.Module]  # the dense model, in turns with which others are timed


def measure(
    evaluation: Evaluation,
    dense: nn.Module,
    found: Sequence[Candidate],
    results: Results,
    beside: Beside | None = None,
) -> Iterator[Row]:
    """Yield one row per candidate: from the results if it is there, else measured and added to them.

    Args:
        evaluation: How.
        dense: The model that the candidates are made of.
        found: What.
        results: What is measured already.
        beside: What speed-ups are relative to. Default: ``dense``.
    """
    beside = (evaluation, dense) if beside is None else beside
    check_classes(cast(int, dense.num_classes), evaluation.images)
    device = next(dense.parameters()).device
    same = {
        "model": evaluation.model,
        "weights": weights_digest(dense),
        "data": evaluation.images.digest,
        "preprocess": str(evaluation.preprocess),
        "dtype": evaluation.precision.name,
        "device": str(device),
    }
    with progress() as bar:
        for candidate in found:
            key = _key(same, candidate)
            row = results.find(key)
            if row is None or (evaluation.rounds and row.get("timed_beside") != beside[0].model):
                task = bar.add_task(candidate.name, total=len(evaluation.images))
                advance = functools.partial(bar.advance, task)
                row = {KEY: key} | _measure(evaluation, candidate, beside, advance) | describe_machine(device)
                results.add(row)
            yield row


def right_images(row: Row) -> Tensor:
    """(n,) bool, which images the candidate of this row classified rightly."""
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=int(row["n"])).astype(bool))


def _measure(evaluation: Evaluation, candidate: Candidate, beside: Beside, advance: functools.partial) -> Row:
    images = evaluation.images
    predicted = predict(
        candidate.model,
        images,
        evaluation.preprocess,
        batch_size=evaluation.batch_size,
        precision=evaluation.precision,
        workers=evaluation.workers,
        progress=advance,
    )
    accuracy, (low, high) = (found := score(predicted, images)), found.interval
    return {
        "model": evaluation.model,
        "checkpoint": evaluation.checkpoint,
        "data": images.name,
        "dtype": evaluation.precision.name,
        "method": candidate.method,
        "amount": candidate.amount,
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "options": json.dumps(dict(candidate.options)),
        "layers": list(candidate.info.layers) if candidate.info else [],
        "tokens": list(candidate.info.tokens) if candidate.info else [],
        "top1": accuracy.share,
        "top1_low": low,
        "top1_high": high,
        "correct": accuracy.correct,
        "n": accuracy.n,
        "right": _pack(predicted == torch.tensor(images.labels)),
        "gflops": candidate.gflops,
        "promised_speedup": candidate.promised,
        **(_time(evaluation, candidate, *beside) if evaluation.rounds else {}),
        "command": evaluation.command,
    }


def _time(evaluation: Evaluation, candidate: Candidate, other: Evaluation, dense: nn.Module) -> Row:
    """Images per second of one candidate, in turns with the dense model, on one batch in memory."""
    name, reference = f"{evaluation.model} {candidate.name}", f"{other.model} {DENSE}"
    passes = {reference: other.timed_pass(dense), name: evaluation.timed_pass(candidate.model)}
    device = next(dense.parameters()).device
    taken = list(interleave(passes, device, rounds=evaluation.rounds, seconds=0.1))
    count = min(evaluation.batch_size, len(evaluation.images))
    timing = summarise(taken, name, reference, count)
    return {"batch_size": count, "timed_beside": other.model} | dataclasses.asdict(timing)


def _key(same: Row, candidate: Candidate) -> str:
    done = candidate.info
    reduction = {"method": candidate.method, "amount": candidate.amount}
    chosen = {"options": done.options, "layers": done.layers} if done else {}
    return configuration_key(same | reduction | chosen)


def _pack(right: Tensor) -> str:
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()
