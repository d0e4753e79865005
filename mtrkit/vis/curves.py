"""Curves of accuracy against cost: one line per method, with intervals, beside the dense models."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from mtrkit.errors import OptionError

_MARKERS = "osD^vP*X<>hd"


class Point(NamedTuple):
    """One measured model."""

    cost: float  # GFLOPs or images per second
    accuracy: float  # share of right answers, with its interval
    low: float
    high: float


def draw_curves(
    lines: Mapping[str, Sequence[Point]],
    dense: Mapping[str, Point],
    cost: str,
    files: Sequence[str | Path],
    title: str = "",
) -> None:
    """Write one plot to one or more files.

    Args:
        lines: Method → its points.
        dense: Model → its point without reduction; a smaller dense model is one of them.
        cost: What the horizontal axis says, with its unit.
        files: Where to write; the suffix says the format, ``.png`` or ``.svg``.
        title: A line above.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError("plots need matplotlib: pip install 'mtrkit[vis]'") from error
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), cycle(_MARKERS), strict=False):
        _errorbar(axes, sorted(points), name, marker=marker, linewidth=1.2)
    for (name, point), marker in zip(dense.items(), cycle(_MARKERS), strict=False):
        _errorbar(axes, [point], name, marker=marker, markersize=8, markerfacecolor="none", color="black")
    axes.set(xlabel=cost, ylabel="top-1 accuracy (%)")
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with rc_context({"svg.hashsalt": title}):  # without dates and with fixed ids the same points give the same bytes
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if Path(file).suffix == ".svg" else None)


def _errorbar(axes: Any, points: Sequence[Point], name: str, **style: Any) -> None:
    heights = [100 * point.accuracy for point in points]
    spread = [
        [100 * (point.accuracy - point.low) for point in points],
        [100 * (point.high - point.accuracy) for point in points],
    ]
    axes.errorbar([point.cost for point in points], heights, yerr=spread, label=name, capsize=2, **style)
