"""What a run says of itself while it goes: a row per step, as CSV and for TensorBoard, and a picture at the end."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrkit.errors import OptionError

COLUMNS = ("step", "epoch", "loss", "accuracy", "lr", "grad_norm", "images_per_s", "held_out")


class Curve:
    """A run's rows; those of steps that will be done again are taken out first.

    Args:
        file: The CSV file.
        step: The step from which the run goes on.
        tensorboard: Folder for TensorBoard, or ``None``.
    """

    def __init__(self, file: Path, step: int, tensorboard: Path | None = None) -> None:
        self.file, self.board = file, None if tensorboard is None else _board(tensorboard, step)
        rows = [row for row in read_curve(file) if row["step"] <= step]
        part = file.with_suffix(".part")
        with part.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, file)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row, at once."""
        with self.file.open("a", newline="") as opened:
            csv.DictWriter(opened, COLUMNS).writerow(row)
        if self.board is not None:
            for name in COLUMNS[2:]:
                if row.get(name) is not None:
                    self.board.add_scalar(name, row[name], row["step"])

    def close(self) -> None:
        """Finish TensorBoard's file, and draw the curve if matplotlib is there."""
        if self.board is not None:
            self.board.close()
        try:
            import matplotlib
        except ImportError:
            return
        _draw(read_curve(self.file), self.file.with_suffix(".svg"), matplotlib)


def read_curve(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's ``log.csv``: numbers, or ``None`` if there is none."""
    file = Path(file)
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return [
            {"step": int(row["step"])} | {name: float(row[name]) if row[name] else None for name in COLUMNS[1:]}
            for row in csv.DictReader(opened)
        ]


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionError("TensorBoard's package is missing; `pip install tensorboard`, or do without") from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def _draw(rows: list[dict[str, Any]], file: Path, matplotlib: Any) -> None:
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "mtrkit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1)
        left.set(xlabel="step", ylabel="training loss")
        held = [(row["step"], 100 * row["held_out"]) for row in rows if row["held_out"] is not None]
        right.plot([step for step, _ in held], [share for _, share in held], marker="o")
        right.set(xlabel="step", ylabel="held-out accuracy, %")
        figure.savefig(file, metadata={"Date": None})
