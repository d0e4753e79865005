"""What rows say side by side, as the cells of a table, as Markdown, and in words."""

from mtrkit.measure.accuracy import Accuracy
from mtrkit.measure.candidates import DENSE
from mtrkit.measure.evaluation import right_images
from mtrkit.measure.results import Row
from mtrkit.measure.statistics import paired_difference


def table(rows: list[Row], reference: str) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: one line per method, one column per amount, with accuracies in per cent.

    Args:
        rows: Of one or more models, as :func:`mtrkit.measure.evaluation.measure` yields them.
        reference: The method from which paired differences are taken; ``"dense"`` for the first model as it is.
    """
    reduced = [row for row in rows if row["method"] != DENSE]
    amounts = list(dict.fromkeys(row["amount"] for row in reduced))
    found = {(row["method"], row["amount"]): row for row in reduced}
    same = rows[0] if reference == DENSE else None
    others = {amount: same or found.get((reference, amount)) for amount in amounts}
    lines = []
    for dense in (row for row in rows if row["method"] == DENSE):
        accuracy = str(Accuracy(int(dense["correct"]), int(dense["n"])))
        lines.append(
            [f"{dense['model']}, dense, {float(dense['gflops']):.3g} GFLOPs", accuracy, *[""] * (len(amounts) - 1)]
        )
    for method in dict.fromkeys(row["method"] for row in reduced):
        lines.append([method, *(_cell(found.get((method, amount)), others[amount]) for amount in amounts)])
    return ["method", *amounts], lines


def as_markdown(columns: list[str], cells: list[list[str]]) -> str:
    """A pipe table with one line of headings; the first column is aligned to the left, the others to the right."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(rows: list[Row], reference: str, command: str) -> str:
    """What the numbers are, and the command that gives them again."""
    first = rows[0]
    return (
        f"Top-1 accuracy in per cent on {first['n']} images, each column one share of the FLOPs removed (or r tokens "
        f"per layer); behind it the paired difference from `{reference}` on the same images with its 95 % interval, "
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


def images_per_second(rows: list[Row]) -> list[float]:
    """The first model's, times the speed-up measured in turns with it: a machine's speed drifts from row to row."""
    dense = {row["model"]: float(row["images_per_second"]) for row in rows if row["method"] == DENSE}
    return [dense[row["timed_beside"]] * float(row["speedup"]) for row in rows]


def _cell(row: Row | None, reference: Row | None) -> str:
    if row is None:
        return ""
    accuracy = f"{100 * float(row['top1']):.1f}"
    if reference is None or reference is row:
        return accuracy
    difference = paired_difference(right_images(row), right_images(reference))
    return f"{accuracy} {difference}{' *' if difference.clear else ''}"
