"""What a picture or a page shows: inputs as the model saw them, and passes of reduced models over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from mtrkit.errors import InputError
from mtrkit.patch import Trace


class Answer(NamedTuple):
    """A class that a model gives, by its name or number, and how sure it is."""

    label: str
    probability: float

    def __str__(self) -> str:
        share = "under 1 %" if self.probability < 0.01 else f"{100 * self.probability:.0f} %"
        return f"{self.label} {share}"


@dataclass(frozen=True)
class Shown:
    """An input as the model saw it.

    Attributes:
        frames: (H, W) each; of an image, one.
        name: What it is called.
        top: What the dense model answers, the likeliest class first.
        times: Of a clip, when its frames are, in seconds.
    """

    frames: Sequence[Image.Image]
    name: str = ""
    top: Sequence[Answer] = ()
    times: Sequence[float] | None = None


class Cost(NamedTuple):
    """What a pass over one input costs, and how fast it was if that was measured."""

    gflops: float
    images_per_second: float | None = None
    speedup: float | None = None  # measured in turns with the dense model


@dataclass(frozen=True)
class Pass:
    """One pass of a reduced model over all inputs.

    Attributes:
        method: As it was asked for.
        amount: What was asked to be removed, in words, as in ``"ratio 0.3"``.
        trace: Of the pass.
        tops: For each input what the model answers, the likeliest class first.
        cost: Of one input.
    """

    method: str
    amount: str
    trace: Trace
    tops: Sequence[Sequence[Answer]] | None = None
    cost: Cost | None = None

    @property
    def name(self) -> str:
        """Unique among the passes of a picture."""
        return f"{self.method} at {self.amount}"


def check_traces(inputs: Sequence[Shown], passes: Sequence[Pass]) -> None:
    """Raise :class:`InputError` unless each pass was over just these inputs, and all have as many frames."""
    for each in passes:
        traced = len(each.trace.slot) if each.trace.stages else 0
        if traced != len(inputs):
            raise InputError(
                f"{len(inputs)} inputs were given, and the trace of {each.name} is of {traced}; trace one pass on "
                "exactly these inputs"
            )
    if len({len(shown.frames) for shown in inputs}) > 1:
        raise InputError("the inputs of one picture or page must have the same number of frames")
