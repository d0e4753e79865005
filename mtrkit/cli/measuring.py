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
from mtrkit.cli.loading import Candidate
from mtrkit.cli.results import KEY, Results, Row, configuration_key
from mtrkit.measure import (
    ImageSet,
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


def measure(evaluation: Evaluation, dense: nn.Module, found: Sequence[Candidate], results: Results) -> Iterator[Row]:
    """Yield one row per candidate: from the results if it is there, else measured and added to them."""
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
            if row is None or (evaluation.rounds and not row.get("speedup")):
                task = bar.add_task(candidate.name, total=len(evaluation.images))
                advance = functools.partial(bar.advance, task)
                row = {KEY: key} | _measure(evaluation, dense, candidate, advance) | describe_machine(device)
                results.add(row)
            yield row


def right_images(row: Row) -> Tensor:
    """(n,) bool, which images the candidate of this row classified rightly."""
    packed = np.frombuffer(base64.b64decode(row["right"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=int(row["n"])).astype(bool))


def _measure(evaluation: Evaluation, dense: nn.Module, candidate: Candidate, advance: functools.partial) -> Row:
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
        **(_time(evaluation, dense, candidate) if evaluation.rounds else {}),
        "command": evaluation.command,
    }


def _time(evaluation: Evaluation, dense: nn.Module, candidate: Candidate) -> Row:
    """Images per second of one candidate, in turns with the dense model, on one batch in memory."""
    device, precision = next(dense.parameters()).device, evaluation.precision
    first = next(batches(evaluation.images, evaluation.preprocess, evaluation.batch_size))
    sample = first.to(device, precision.weights)
    models = {"dense": dense, candidate.name: candidate.model}
    passes = {name: forward_pass(model, sample, precision) for name, model in models.items()}
    taken = list(interleave(passes, device, rounds=evaluation.rounds, seconds=0.1))
    timing = summarise(taken, candidate.name, "dense", len(sample))
    return {"batch_size": len(sample)} | dataclasses.asdict(timing)


def _key(same: Row, candidate: Candidate) -> str:
    done = candidate.info
    reduction = {"method": candidate.method, "amount": candidate.amount}
    chosen = {"options": done.options, "layers": done.layers} if done else {}
    return configuration_key(same | reduction | chosen)


def _pack(right: Tensor) -> str:
    return base64.b64encode(np.packbits(right.numpy()).tobytes()).decode()
