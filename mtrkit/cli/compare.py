"""Compare reduction methods on one or more models: accuracy, FLOPs, speed, and which differences are real.

All methods reduce after the same blocks to the same share of the FLOPs, on the same images. Differences between
methods are paired: only images on which one is right and the other wrong count, so they are known far better than
the accuracies. A smaller dense model beside a reduced larger one answers whether to reduce at all. Everything is timed
in turns with the first model as it is.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from mtrkit.cli.console import print_table, say
from mtrkit.cli.evaluate import add_measuring
from mtrkit.cli.loading import DENSE, candidates
from mtrkit.cli.measuring import Beside, Evaluation, measure, right_images
from mtrkit.cli.options import add_reduction, positive, resolve_running
from mtrkit.cli.results import Results, Row
from mtrkit.measure import Accuracy, Precision, paired_difference, preprocess_for
from mtrkit.measure.images import BUNDLED
from mtrkit.models import create_model
from mtrkit.vis.curves import Point, draw_curves

EPILOG = """examples:
  mtrkit compare --model vim_micro_patch4_stride2_32 --data bundled --method mtr rmeeto random --ratio 0.2 0.3 0.4
  mtrkit compare --model vim_small_patch16_224=vim_s.pth vim_tiny_patch16_224=vim_t.pth --data imagenet/val \\
      --method mtr rmeeto utr hsa evit pumer --out compare.json --table compare.md --plot compare.png compare.svg
  mtrkit compare --model MODEL=FILE --data FOLDER --method rmeeto:layers=even rmeeto:layers=odd --ratio 0 --r 5 11
"""


class ModelChoice(NamedTuple):
    """A model and its weights, as they were asked for."""

    name: str
    checkpoint: str

    @classmethod
    def parse(cls, text: str) -> "ModelChoice":
        """Type of --model: NAME or NAME=CHECKPOINT."""
        name, _, checkpoint = text.partition("=")
        return cls(name, checkpoint or "pretrained")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Models, images, methods, how to measure, and where to write."""
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        type=ModelChoice.parse,
        metavar="NAME[=CHECKPOINT]",
        help="the first is reduced, further ones stay dense beside it (default checkpoint: 'pretrained')",
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help=f"a folder per class, or {BUNDLED!r}")
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0.2, 0.3, 0.4])
    parser.add_argument("--against", metavar="METHOD", help="what differences are taken from (default: the first)")
    add_measuring(parser)
    parser.add_argument("--title", default="", help="a line above table and plots")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Markdown table")
    parser.add_argument(
        "--plot", type=Path, nargs="+", default=[], metavar="FILE", help="accuracy against GFLOPs, .png or .svg"
    )
    parser.add_argument(
        "--speed-plot", type=Path, nargs="+", default=[], metavar="FILE", help="accuracy against images/s"
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the file yet; print, write and plot all."""
    results = Results(args.out)
    device, precision = resolve_running(args), Precision(args.dtype)
    rows: list[Row] = []
    first: Beside | None = None
    try:
        for choice in args.model:
            model = precision.cast(create_model(choice.name, choice.checkpoint).eval().to(device))
            preprocess = preprocess_for(getattr(model, "pretrained_cfg", {}))
            evaluation = Evaluation.of(args, choice.name, choice.checkpoint, preprocess, precision)
            methods = () if first else args.method
            found = candidates(model, methods, args.ratio, args.layers, dict(args.option), args.r)
            first = first or (evaluation, model)
            for row in measure(evaluation, model, found, results, first):
                rows.append(row)
    finally:
        if rows:
            _report(args, rows)
    return 0


def _report(args: argparse.Namespace, rows: list[Row]) -> None:
    reference = args.against or args.method[0].text
    columns, cells = table(rows, reference)
    print_table(columns, cells, title=args.title)
    if args.out:
        say(f"{len(rows)} configurations are in {args.out}")
    if args.table:
        head = f"## {args.title}\n\n" if args.title else ""
        text = head + as_markdown(columns, cells) + f"\n{caption(rows, reference, args.command_line)}\n"
        args.table.write_text(text, encoding="utf-8")
    if args.plot:
        _plot(rows, [float(row["gflops"]) for row in rows], "GFLOPs", args.plot, args.title)
    if args.speed_plot:
        timed = [row for row in rows if row.get("speedup")]
        _plot(timed, images_per_second(timed), "images/s", args.speed_plot, args.title)


def table(rows: list[Row], reference: str) -> tuple[list[str], list[list[str]]]:
    """One line per method, one column per amount: accuracy, and the paired difference from ``reference``."""
    reduced = [row for row in rows if row["method"] != DENSE]
    amounts = list(dict.fromkeys(row["amount"] for row in reduced))
    found = {(row["method"], row["amount"]): row for row in reduced}
    lines = []
    for dense in (row for row in rows if row["method"] == DENSE):
        accuracy = str(Accuracy(int(dense["correct"]), int(dense["n"])))
        lines.append(
            [f"{dense['model']}, dense, {float(dense['gflops']):.3g} GFLOPs", accuracy, *[""] * (len(amounts) - 1)]
        )
    for method in dict.fromkeys(row["method"] for row in reduced):
        here = [(found.get((method, amount)), found.get((reference, amount))) for amount in amounts]
        lines.append([method, *(_cell(row, other) for row, other in here)])
    return ["method", *amounts], lines


def _cell(row: Row | None, reference: Row | None) -> str:
    if row is None:
        return ""
    accuracy = f"{100 * float(row['top1']):.1f}"
    if reference is None or reference is row:
        return accuracy
    difference = paired_difference(right_images(row), right_images(reference))
    return f"{accuracy} {difference}{' *' if difference.clear else ''}"


def as_markdown(columns: list[str], cells: list[list[str]]) -> str:
    """A pipe table."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(rows: list[Row], reference: str, command: str) -> str:
    """What the numbers are, and the command that gives them again."""
    first = rows[0]
    layers: list[int] = next((row["layers"] for row in rows if row["method"] == reference), [])
    return (
        f"Top-1 accuracy in per cent on {first['n']} images, each column one share of the FLOPs removed (or r tokens "
        f"per layer); behind it the paired difference from `{reference}` on the same images with its 95 % interval, "
        f"starred where that leaves out zero. {first['model']}, layers {layers} unless a method says "
        f"otherwise; {first['device']}, torch {first['torch']}, mtrkit {first['mtrkit']} at {first['commit']}.\n\n"
        f"    {command}"
    )


def images_per_second(rows: list[Row]) -> list[float]:
    """The first model's, times the speed-up measured in turns with it: a machine's speed drifts from row to row."""
    dense = {row["model"]: float(row["images_per_second"]) for row in rows if row["method"] == DENSE}
    return [dense[row["timed_beside"]] * float(row["speedup"]) for row in rows]


def _plot(rows: list[Row], costs: list[float], unit: str, files: list[Path], title: str) -> None:
    lines: dict[str, list[Point]] = {}
    dense: dict[str, Point] = {}
    for row, cost in zip(rows, costs, strict=True):
        point = Point(cost, float(row["top1"]), float(row["top1_low"]), float(row["top1_high"]))
        if row["method"] == DENSE:
            dense[row["model"]] = point
        else:
            lines.setdefault(row["method"], []).append(point)
    draw_curves(lines, dense, unit, files, title)
