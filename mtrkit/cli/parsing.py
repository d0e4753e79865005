"""How a word on the command line becomes a value, or an error that says what was expected."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any

import torch

from mtrkit.measure.candidates import RANDOM, MethodChoice, Threshold
from mtrkit.schedule import EveryNth


def device(text: str) -> torch.device:
    """Type of --device."""
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; expected cpu, cuda or cuda:1") from error


def checkpoint(text: str) -> str | None:
    """Type of --checkpoint: ``None`` for random weights."""
    return None if text == RANDOM else text


def positive(text: str) -> int:
    """Type of counts: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """Type of counts that may be none: an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def input_size(text: str) -> tuple[int, ...]:
    """Type of --input-size: one to three numbers with x between them; one stands for height and width."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected 224, 224x320 or 3x224x224")
    numbers = tuple(map(int, parts))
    return numbers * 2 if len(numbers) == 1 else numbers


def option(text: str) -> tuple[str, object]:
    """Type of --option: a name and a Python literal, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not an option; expected NAME=VALUE, such as similarity=l2")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def method(text: str) -> MethodChoice:
    """Type of --method: a name, and options of this method alone after a colon."""
    name, _, rest = text.partition(":")
    options = dict(option(part) for part in rest.split(",")) if rest else {}
    if "layers" in options:
        options["layers"] = layers(str(options["layers"]))
    return MethodChoice(text, name, options)


def layers(text: str) -> Sequence[int] | EveryNth:
    """Blocks to reduce after: even, odd, every4, or numbers as in 5+10+15."""
    places = {"even": EveryNth(2), "odd": EveryNth(2, start=1)}
    if text in places:
        return places[text]
    if text.startswith("every") and text[5:].isdecimal() and int(text[5:]):
        return EveryNth(int(text[5:]))
    if all(part.isdecimal() for part in text.split("+")):
        return tuple(map(int, text.split("+")))
    raise argparse.ArgumentTypeError(f"{text!r} does not name layers; expected even, odd, every4, 5+10+15 or 5 10 15")


class Layers(argparse.Action):
    """--layers: one word of :func:`layers`, or several numbers."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Put the words together."""
        if len(values) == 1:
            setattr(namespace, self.dest, values[0])
        elif any(isinstance(value, EveryNth) for value in values):
            parser.error(f"argument {option_string}: even, odd and every4 stand alone; give one of them, or numbers")
        else:
            setattr(namespace, self.dest, tuple(layer for value in values for layer in value))


def threshold(text: str) -> Threshold:
    """Type of --threshold: a number, or one for each of the layers with commas between them."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a threshold; expected 0.9 or 0.95,0.9,0.85") from None
    return values[0] if len(values) == 1 else values
