"""What rows say side by side, as the cells of tables, as Markdown, and in words."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mtrkit.measure.accuracy import Accuracy
from mtrkit.measure.candidates import DENSE
from mtrkit.measure.evaluation import right_images
from mtrkit.measure.results import Row
from mtrkit.measure.statistics import Difference, paired_difference


class Cells(NamedTuple):
    """A table: what stands above it, the headings of its columns, and its lines."""

    title: str
    columns: list[str]
    lines: list[list[str]]


def table(rows: list[Row], reference: str) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: one line per model and method, and columns of what each amount leaves and brings.

    Args:
        rows: Of one or more models, as :func:`mtrkit.measure.evaluation.measure` yields them.
        reference: The method from which paired differences are taken; ``"dense"`` for the first model as it is.
    """
    dense, reduced = _apart(rows)
    amounts, timed = _amounts(reduced), any(map(is_timed, rows))
    found = {(row["method"], row["amount"]): row for row in reduced}
    columns = ["method", "not reduced: top-1 %", *(["not reduced: speed-up"] if timed else [])]
    for amount in amounts:
        columns.append(f"{amount_in_words(amount)}: top-1 %, difference from {reference}")
        columns += [f"{amount_in_words(amount)}: speed-up"] if timed else []
    blank = [""] * (2 if timed else 1)
    lines = []
    for row in dense:
        name = f"{row['model']}, dense, {float(row['gflops']):.3g} GFLOPs"
        lines.append([name, accuracy_of(row), *([speedup_of(row)] if timed else []), *blank * len(amounts)])
    for method in dict.fromkeys(row["method"] for row in reduced):
        line = [method, *blank]
        for amount in amounts:
            measured = found.get((method, amount))
            line.append("" if measured is None else _top1_and_difference(measured, rows, reference))
            line += [speedup_of(measured)] if timed else []
        lines.append(line)
    return columns, lines


def tables_by_amount(rows: list[Row], reference: str) -> Iterator[Cells]:
    """Yield the same for a terminal: a table of the dense models, then one for each amount with a line per method."""
    dense, reduced = _apart(rows)
    speed, timed = ["images/s", "ms per batch", "speed-up"], any(map(is_timed, rows))
    speed = speed if timed else []

    def measured(row: Row) -> list[str]:
        cells = [number(float(row["gflops"]), 3)]
        return [*cells, rate_of(row), milliseconds_of(row), speedup_of(row)] if timed else cells

    columns = ["not reduced", "top-1 % (95 % interval)", "GFLOPs", *speed]
    yield Cells("", columns, [[row["model"], accuracy_of(row), *measured(row)] for row in dense])
    columns = ["method", "top-1 %", f"difference from {reference} (95 % interval)", "GFLOPs", *speed]
    for amount in _amounts(reduced):
        lines = [
            [row["method"], top1_of(row), _difference(row, rows, reference), *measured(row)]
            for row in reduced
            if row["amount"] == amount
        ]
        yield Cells(amount_in_words(amount), columns, lines)


def differences(rows: list[Row], reference: str) -> list[dict[str, Any]]:
    """The paired differences as plain data, as shares of the images."""
    found = []
    for row in rows:
        difference = paired_with(row, rows, reference)
        if difference is not None:
            which = {"model": row["model"], "method": row["method"], "amount": row["amount"]}
            found.append(which | {"difference": difference.share, "low": difference.low, "high": difference.high})
    return found


def paired_with(row: Row, rows: list[Row], reference: str) -> Difference | None:
    """A reduced row's difference from the reference at its amount; ``None`` for the reference, and without one."""
    if row["method"] == DENSE:
        return None
    if reference == DENSE:
        other: Row | None = rows[0]
    else:
        pairs = {(found["method"], found["amount"]): found for found in rows}
        other = pairs.get((reference, row["amount"]))
    if other is None or other is row:
        return None
    return paired_difference(right_images(row), right_images(other))


def amount_in_words(amount: str) -> str:
    """``"0.3"`` as a share of the FLOPs; ``"r=5"`` and ``"threshold=0.9"`` say themselves what they are."""
    return amount if "=" in amount else f"ratio {amount}"


def amount_heading(rows: Sequence[Row]) -> str:
    """What stands above a column of amounts."""
    return "ratio" if only_ratios(rows) else "ratio, r or threshold"


def only_ratios(rows: Sequence[Row]) -> bool:
    """Whether all amounts are ratios, so that the ratios reached need not be told."""
    return not any("=" in row["amount"] for row in rows)


def is_timed(row: Row) -> bool:
    """Whether a row has its speed."""
    return bool(row.get("speedup"))


def accuracy_of(row: Row) -> str:
    """Top-1 in per cent with its 95 % interval, as in ``"84.6 (82.2–86.7)"``."""
    return str(Accuracy(int(row["correct"]), int(row["n"]))).replace(" %", "")


def top1_of(row: Row) -> str:
    """Top-1 in per cent."""
    return f"{100 * float(row['top1']):.1f}"


def number(value: float, digits: int = 4) -> str:
    """A positive number with so many digits, or all of those before the point; never with an exponent.

    >>> number(12345.6), number(0.25196), number(99.994, 3)
    ('12346', '0.252', '100')
    """
    return f"{value:.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def rate_of(row: Row) -> str:
    """Images per second."""
    return number(float(row["images_per_second"])) if is_timed(row) else ""


def milliseconds_of(row: Row) -> str:
    """Milliseconds that a batch takes."""
    if not is_timed(row):
        return ""
    return number(1000 * int(row["batch_size"]) / float(row["images_per_second"]))


def speedup_of(row: Row | None) -> str:
    """How many times faster than the model that it was timed beside."""
    return f"×{float(row['speedup']):.2f}" if row is not None and is_timed(row) else ""


def as_markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A pipe table with one line of headings; the first column is aligned to the left, the others to the right."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(rows: list[Row], reference: str, command: str) -> str:
    """What the numbers are, and the command that gives them again."""
    first = rows[0]
    return (
        f"Top-1 accuracy in per cent on {first['n']} images; `ratio` is the share of the FLOPs removed, `r` tokens per "
        f"layer. Behind it the paired difference from `{reference}` on the same images with its 95 % interval, "
        f"starred where that leaves out zero. {first['model']}{_layers(rows)}; {first['device']}, "
        f"torch {first['torch']}, mtrkit {first['mtrkit']} at {first['commit']}.\n\n"
        f"    {command}"
    )


def _layers(rows: list[Row]) -> str:
    """Behind which blocks the methods reduce: what most have, and who has others."""
    methods: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["layers"]:
            methods.setdefault(str(row["layers"]), {})[row["method"]] = None
    if not methods:
        return ""
    most, *others = sorted(methods, key=lambda layers: -len(methods[layers]))
    return f", layers {most}" + "".join(f", {layers} for {', '.join(methods[layers])}" for layers in others)


def _apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Those of the models as they are, and the others."""
    return [row for row in rows if row["method"] == DENSE], [row for row in rows if row["method"] != DENSE]


def _amounts(reduced: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["amount"] for row in reduced))


def _difference(row: Row, rows: list[Row], reference: str) -> str:
    difference = paired_with(row, rows, reference)
    return "" if difference is None else f"{difference}{' *' if difference.clear else ''}"


def _top1_and_difference(row: Row, rows: list[Row], reference: str) -> str:
    return f"{top1_of(row)} {_difference(row, rows, reference)}".rstrip()
