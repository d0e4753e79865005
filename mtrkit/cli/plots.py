"""Plots and the page of ``mtrkit compare``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtrkit.errors import InputError
from mtrkit.measure.comparison import Compared, compare_with_dense
from mtrkit.measure.results import Row
from mtrkit.vis import compare_page, plot_measured


def plot_flops(rows: Sequence[Row], files: Sequence[Path], title: str) -> None:
    """Accuracy lost against GFLOPs."""
    plot_measured(compare_with_dense(rows), "gflops", "GFLOPs for one input", files, title)


def plot_speed(rows: Sequence[Row], files: Sequence[Path], title: str) -> None:
    """Accuracy lost against images per second, of what was timed.

    Raises:
        InputError: Nothing was timed.
    """
    found = compare_with_dense(rows)
    if next(one for one in found if one.difference is None).images_per_second is None:
        raise InputError("nothing was timed, so there is no speed to plot; give --rounds above 0")
    plot_measured(found, "images_per_second", "images per second", files, title)


def page_of(rows: Sequence[Row], args: argparse.Namespace) -> str:
    """A table and a plot to point at, as HTML."""
    first = rows[0]
    about = {
        "Images": f"{first['n']} of {first['data']}",
        "Accuracy": "top-1 with 95 % intervals; differences are paired, on the same images",
        "Speed": "measured in turns with the first model" if any(row.get("speedup") for row in rows) else "",
        "Machine": f"{first['device']}, torch {first['torch']}, mtrkit {first['mtrkit']} {first['commit']}",
        "Command": args.command_line,
    }
    title = args.title or f"Token reduction of {first['model']}"
    return compare_page([_plain(one) for one in compare_with_dense(rows)], title, about)


def _plain(one: Compared) -> dict[str, object]:
    return vars(one) | {"difference": one.difference and one.difference._asdict()}
