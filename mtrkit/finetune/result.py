"""The result of a run."""

from dataclasses import dataclass
from pathlib import Path

from mtrkit.measure import Accuracy


@dataclass(frozen=True)
class Result:
    """What a run has trained.

    Attributes:
        steps: Steps of the optimiser.
        loss: Mean of the training loss over the last hundred steps at most.
        accuracy: Of the weights that were saved, on the held-out images; ``None`` without these.
        skipped: Draws whose image could not be read and was passed over.
        weights: The file with the weights; the model has them too.
        seconds: Of this process's loop; not those before an interruption.
    """

    steps: int
    loss: float
    accuracy: Accuracy | None
    skipped: int
    weights: Path
    seconds: float

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f", held-out accuracy {self.accuracy} on {self.accuracy.n}"
        skipped = f", {self.skipped} unreadable images passed over" if self.skipped else ""
        took = f"{self.seconds / 60:.1f} minutes"
        return f"{self.steps} steps, loss {self.loss:.4f}{accuracy}{skipped}, {took}\nweights: {self.weights}"
