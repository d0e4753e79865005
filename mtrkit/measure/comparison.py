"""Rows side by side as plain data: what plots and pages show of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtrkit.errors import InputError
from mtrkit.measure.candidates import DENSE
from mtrkit.measure.evaluation import right_images
from mtrkit.measure.results import Row
from mtrkit.measure.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Compared:
    """One measured model.

    Attributes:
        model: Its name.
        method: ``"dense"``, or the method as it was asked for.
        amount: What was asked to be removed, in words; empty for a dense model.
        gflops: Of one input.
        top1: Share of right answers.
        interval: The 95 % interval of that share.
        difference: Of ``top1`` from the first dense model's, on the same images; ``None`` for that model itself.
        images_per_second: The first dense model's, times the speed-up; ``None`` if it was not timed.
        speedup: Measured in turns with the first dense model.
    """

    model: str
    method: str
    amount: str
    gflops: float
    top1: float
    interval: tuple[float, float]
    difference: Difference | None
    images_per_second: float | None
    speedup: float | None

    @property
    def dense(self) -> bool:
        """Whether it is a model as it is."""
        return self.method == DENSE


def compare_with_dense(rows: Sequence[Row]) -> list[Compared]:
    """Set rows beside the dense model among them that stands first.

    Args:
        rows: As :func:`mtrkit.measure.evaluation.measure` yields them, or as they are read from a file.

    Raises:
        InputError: The rows hold no dense model, or one was measured on another number of images.
    """
    reference = next((row for row in rows if row["method"] == DENSE), None)
    if reference is None:
        raise InputError("the rows hold no dense model to compare with; measure it too, in the same command")
    return [_compared(row, reference) for row in rows]


def _compared(row: Row, reference: Row) -> Compared:
    same = row is reference
    return Compared(
        model=str(row["model"]),
        method=str(row["method"]),
        amount="" if row["method"] == DENSE else str(row["amount"]),
        gflops=float(row["gflops"]),
        top1=float(row["top1"]),
        interval=(float(row["top1_low"]), float(row["top1_high"])),
        difference=None if same else paired_difference(right_images(row), right_images(reference)),
        images_per_second=_rate(row, reference),
        speedup=float(row["speedup"]) if row.get("speedup") else None,
    )


def _rate(row: Row, reference: Row) -> float | None:
    """A machine's speed drifts from row to row, so it is the reference's times the speed-up in turns with it."""
    if not row.get("speedup") or not reference.get("images_per_second"):
        return None
    return float(reference["images_per_second"]) * float(row["speedup"])
