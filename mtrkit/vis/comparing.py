"""The page of ``mtrkit compare``: a table, and a plot whose points can be pointed at."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtrkit.vis.page import render_page


def compare_page(points: Sequence[Mapping[str, Any]], title: str, about: Mapping[str, str]) -> str:
    """Return a page, as HTML, of measured models side by side.

    Args:
        points: One for each, with the fields of :class:`mtrkit.measure.comparison.Compared`; ``difference`` is
            a mapping of ``share``, ``low`` and ``high``, or ``None``.
        title: Of the page.
        about: Lines at its end: what the numbers are of.
    """
    return render_page("compare", title, {"title": title, "about": dict(about), "points": [dict(p) for p in points]})
