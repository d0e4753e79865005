"""Draw the plots of docs/laboratory again, from the rows under benchmarks/results; nothing is measured.

    python benchmarks/plots.py        # in the repository's root

`benchmarks/laboratory.py` and `benchmarks/runs.py` measure the rows, and draw the same plots when they do.
"""

import json
from pathlib import Path

from laboratory import DOCS, METHODS, RESULTS
from runs import OUT, TITLE

from mtrkit.measure.comparison import Compared, compare_with_dense
from mtrkit.vis import plot_measured

SOURCES = (
    (RESULTS, "methods.json", "flops", "speed", METHODS.title),
    (OUT, "compare.json", "runs", "runs_speed", TITLE),
)


def main() -> None:
    """Two plots for each file of rows, one of them only if there are speeds."""
    for folder, rows, flops, speed, title in SOURCES:
        for file in sorted(folder.glob(f"*/{rows}")):
            found = compare_with_dense(json.loads(file.read_text(encoding="utf-8")))
            docs = DOCS / file.parent.name
            plot_measured(found, "gflops", "GFLOPs for one input", both(docs, flops), title)
            if timed(found):
                plot_measured(found, "images_per_second", "images per second", both(docs, speed), title)


def timed(found: list[Compared]) -> bool:
    """Whether there are speeds to plot."""
    return all(one.images_per_second is not None for one in found)


def both(folder: Path, name: str) -> list[Path]:
    """Where a plot goes, in both formats."""
    return [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]


if __name__ == "__main__":
    main()
