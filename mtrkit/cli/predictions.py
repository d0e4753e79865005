"""What a model answers to one input, in words: the class, its name where that is known, and how sure it is."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtrkit.measure.labels import class_labels
from mtrkit.vis import Answer

_TOP = 5
RANDOM_NOTE = "the weights are random, so its answers mean nothing"


@dataclass(frozen=True)
class Prediction:
    """A model's first choice.

    Attributes:
        number: Of the class.
        label: Its name, or ``None`` if it is not known.
        probability: That the model gives it.
        random: Whether the weights are random.
    """

    number: int
    label: str | None
    probability: float
    random: bool

    def __str__(self) -> str:
        name = "" if self.label is None else f" ({self.label})"
        return f"class {self.number}{name}"


def predictions(logits: Tensor, args: argparse.Namespace, model: nn.Module) -> list[Prediction]:
    """The first choices (B,) of a model that was made from the arguments, from its logits (B, K)."""
    probabilities, numbers = logits.float().softmax(dim=-1).max(dim=-1)
    labels: Sequence[str] | None = class_labels(args.model, args.checkpoint, cast(Any, model).num_classes)
    return [
        Prediction(number, None if labels is None else labels[number], probability, args.checkpoint is None)
        for number, probability in zip(numbers.tolist(), probabilities.tolist(), strict=True)
    ]


def answers(logits: Tensor, labels: Sequence[str] | None) -> list[list[Answer]]:
    """For each input the likeliest five classes, by name if that is known, from logits (B, K)."""
    probabilities, numbers = logits.float().softmax(dim=-1).topk(min(_TOP, logits.shape[-1]))
    each = zip(numbers.tolist(), probabilities.tolist(), strict=True)
    return [[Answer(_label(n, labels), p) for n, p in zip(*top, strict=True)] for top in each]


def _label(number: int, labels: Sequence[str] | None) -> str:
    return f"class {number}" if labels is None else labels[number]


def predict_one(model: nn.Module, x: Tensor, args: argparse.Namespace) -> Prediction:
    """The first choice for one input (1, ...)."""
    with torch.inference_mode():
        return predictions(model(x), args, model)[0]
