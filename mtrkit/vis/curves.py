"""Plots of what accuracy is lost for what is saved: the paired difference from the dense model, one curve per method.

Differences on the same images are known far better than accuracies, so their intervals tell methods apart. With more
than four methods each has a panel of its own, the others standing behind it in grey.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mtrkit.errors import OptionError

_COLOURS = ("#0072b2", "#d55e00", "#007a5e", "#aa4499")  # told apart by the colour-blind too
_MARKERS = "osD^"
_TOGETHER = len(_COLOURS)  # curves in one panel
_COLUMNS = 3  # of panels
_BESIDE = 5.0  # points of the page between intervals that would cover each other
_CLOSE = 0.03  # share of the axis within which they would
_DENSE, _OTHERS = "#222222", "#c2c5cb"


class Point(NamedTuple):
    """One measured model."""

    cost: float  # GFLOPs or images per second
    change: float  # of the share of right answers from the dense model, with its interval
    low: float
    high: float
    label: str = ""  # what was asked to be removed


class Dense(NamedTuple):
    """The model that differences are taken from."""

    name: str
    cost: float
    top1: float  # share of right answers


class Measured(Protocol):
    """What :func:`plot_measured` reads of a measured model; :class:`mtrkit.measure.comparison.Compared` has it."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def method(self) -> str:
        """As it was asked for."""

    @property
    def amount(self) -> str:
        """What was asked to be removed."""

    @property
    def top1(self) -> float:
        """Share of right answers."""

    @property
    def difference(self) -> tuple[float, float, float] | None:
        """Of ``top1`` and its interval; ``None`` for the model that differences are taken from."""

    @property
    def dense(self) -> bool:
        """Whether it is a model as it is."""


Lines = Mapping[str, Sequence[Point]]


def plot_measured(
    found: Sequence[Measured], cost: str, unit: str, files: Sequence[str | Path], title: str = ""
) -> None:
    """Plot measured models, as :func:`draw_curves` does.

    Args:
        found: One of them without a difference.
        cost: Name of the attribute that the horizontal axis shows; a model without one is left out.
        unit: What that axis says.
        files: Where to write, ``.png`` or ``.svg``.
        title: A line above.
    """
    lines: dict[str, list[Point]] = {}
    others: dict[str, Point] = {}
    reference = next(one for one in found if one.difference is None)
    for one in found:
        if one.difference is None or getattr(one, cost) is None:
            continue
        change, low, high = one.difference
        point = Point(getattr(one, cost), change, low, high, one.amount)
        if one.dense:
            others[one.model] = point
        else:
            lines.setdefault(one.method, []).append(point)
    draw_curves(lines, others, Dense(reference.model, getattr(reference, cost), reference.top1), unit, files, title)


def draw_curves(
    lines: Lines, others: Mapping[str, Point], dense: Dense, cost: str, files: Sequence[str | Path], title: str = ""
) -> None:
    """Write one plot to one or more files.

    Args:
        lines: Method → its points.
        others: Further dense models → their points; a smaller one of them tells whether to reduce at all.
        dense: The model that differences are taken from.
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
    style: dict[Any, Any] = {
        "svg.hashsalt": title,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
    }
    with rc_context(style):  # without dates and with fixed ids the same points give the same bytes
        figure = Figure(layout="constrained")
        (_together if len(lines) <= _TOGETHER else _apart)(figure, lines, others, dense, cost)
        figure.supylabel(f"top-1: difference from dense ({100 * dense.top1:.1f} %), points", fontsize="medium")
        figure.suptitle(title.replace("`", ""), fontsize="medium")
        for file in files:
            svg = Path(file).suffix == ".svg"
            figure.savefig(
                file, dpi=150, metadata={"Creator": "mtrkit", "Date": None} if svg else {"Software": "mtrkit"}
            )


def _together(figure: Any, lines: Lines, others: Mapping[str, Point], dense: Dense, cost: str) -> None:
    """All curves in one panel; intervals at one cost stand side by side."""
    figure.set_size_inches(8, 4.6)
    axes = figure.subplots()
    axes.set_xlabel(cost)
    span = _span(lines, others, dense)
    aligned = _aligned(lines, span)
    _draw_dense(axes, others, dense, span)
    for index, (name, points) in enumerate(lines.items()):
        shift = _BESIDE * (index - (len(lines) - 1) / 2) if aligned else 0.0
        _draw_line(axes, name, points, _COLOURS[index], _MARKERS[index], shift)
    if aligned:
        _label_amounts(axes, lines)
    else:
        axes.set_xlabel(_with_labels(cost, lines))
        for index, points in enumerate(lines.values()):
            _label_points(axes, points, _COLOURS[index])
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)


def _apart(figure: Any, lines: Lines, others: Mapping[str, Point], dense: Dense, cost: str) -> None:
    """A panel for each curve, with the others in grey."""
    rows = -(-len(lines) // _COLUMNS)
    figure.set_size_inches(9, 1.2 + 2.2 * rows)
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    span = _span(lines, others, dense)
    for axes, (name, points) in zip(panels, lines.items(), strict=False):
        for other in map(sorted, lines.values()):
            axes.plot([p.cost for p in other], [100 * p.change for p in other], color=_OTHERS, linewidth=1, zorder=1)
        _draw_dense(axes, others, dense, span)
        _draw_line(axes, name, points, _COLOURS[0], _MARKERS[0], 0.0)
        _label_points(axes, points, _COLOURS[0])
        axes.set_title(name, fontsize="small", wrap=True)
    for axes in panels[len(lines) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(lines) - _COLUMNS) : len(lines)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(_with_labels(cost, lines), fontsize="small")
    handles, names = panels[0].get_legend_handles_labels()
    kept = {name: handle for name, handle in zip(names, handles, strict=True) if name not in lines}
    figure.legend(kept.values(), kept, loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def _span(lines: Lines, others: Mapping[str, Point], dense: Dense) -> float:
    """How far the costs of all that is drawn are apart."""
    costs = [dense.cost, *(point.cost for point in others.values()), *(p.cost for ps in lines.values() for p in ps)]
    return max(costs) - min(costs)


def _aligned(lines: Lines, span: float) -> bool:
    """Whether the methods stand at the same costs, as they do where these are FLOPs."""
    amounts: dict[str, list[float]] = {}
    for point in (point for points in lines.values() for point in points):
        amounts.setdefault(point.label, []).append(point.cost)
    return all(max(costs) - min(costs) <= _CLOSE * span for costs in amounts.values())


def _draw_dense(axes: Any, others: Mapping[str, Point], dense: Dense, span: float) -> None:
    """The models as they are; those that cost as much as the one before stand beside it."""
    axes.margins(x=0.14)
    axes.axhline(0, color=_DENSE, linewidth=0.8, linestyle=":", zorder=1)
    axes.plot([dense.cost], [0], "o", color=_DENSE, markersize=7, linestyle="none", label=f"{dense.name}, dense")
    placed = [dense.cost]
    for (name, point), marker in zip(others.items(), "vPX<>" * len(others), strict=False):
        beside = sum(abs(point.cost - cost) <= _CLOSE * span for cost in placed)
        placed.append(point.cost)
        style = {"marker": marker, "markerfacecolor": "none", "linestyle": "none"}
        _errorbar(axes, [point], f"{name}, dense", -1.6 * _BESIDE * beside, color=_DENSE, **style)


def _draw_line(axes: Any, name: str, points: Sequence[Point], colour: str, marker: str, shift: float) -> None:
    _errorbar(axes, sorted(points), name, shift, marker=marker, color=colour, linewidth=1.3)


def _errorbar(axes: Any, points: Sequence[Point], name: str, shift: float, **style: Any) -> None:
    """Points with their intervals, all moved to the right by ``shift`` points of the page."""
    from matplotlib.transforms import ScaledTranslation

    moved = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    costs, heights = [point.cost for point in points], [100 * point.change for point in points]
    spread = [
        [100 * (point.change - point.low) for point in points],
        [100 * (point.high - point.change) for point in points],
    ]
    axes.errorbar(
        costs, heights, spread, label=name, capsize=2, markersize=5, zorder=3, elinewidth=1.3, transform=moved, **style
    )
    axes.update_datalim([(p.cost, 100 * value) for p in points for value in (p.low, p.high)])
    axes.autoscale_view()


def _label_amounts(axes: Any, lines: Lines) -> None:
    """What was removed, once below the points of all methods."""
    amounts: dict[str, list[float]] = {}
    for point in (point for points in lines.values() for point in points):
        amounts.setdefault(point.label, []).append(point.cost)
    for amount, costs in amounts.items():
        text, place = amount if "=" in amount else f"ratio {amount}", (sum(costs) / len(costs), 0)
        axes.annotate(text, place, (0, 4), ("data", "axes fraction"), "offset points", ha="center", fontsize=8)


def _with_labels(cost: str, lines: Lines) -> str:
    """What is below an axis whose points are labelled; ``r=5`` and the like say themselves what they are."""
    bare = any(point.label and "=" not in point.label for points in lines.values() for point in points)
    return f"{cost}; the numbers are ratios" if bare else cost


def _label_points(axes: Any, points: Sequence[Point], colour: str) -> None:
    """What was removed, beside each point, on a white edge."""
    from matplotlib.patheffects import withStroke

    for point in points:
        place, edge = (point.cost, 100 * point.change), [withStroke(linewidth=2, foreground="white")]
        style = {"fontsize": 7, "color": colour, "zorder": 4, "path_effects": edge}
        axes.annotate(point.label, place, (5, 5), textcoords="offset points", **style)
