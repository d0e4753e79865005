"""Compare reduction methods on one or more models: accuracy, FLOPs, speed, and which differences are real.

All methods reduce after the same blocks to the same share of the FLOPs, on the same images. Differences between
methods are paired: only images on which one is right and the other wrong count, so they are known far better than
the accuracies. A smaller dense model beside a reduced larger one answers whether to reduce at all. Everything is timed
in turns with the first model as it is. Several processes share the images if `torchrun` or `accelerate launch` starts
the command; the rows are those of one process, and the main one times alone while the others wait.
"""

import argparse
from pathlib import Path

from mtrkit.cli.console import print_table, say
from mtrkit.cli.measuring import add_measuring, evaluation_from, measure_with_progress
from mtrkit.cli.options import add_calibrations, add_data, add_reduction, positive, resolve_running
from mtrkit.cli.pages import PAGES, add_page, check_target, save_page
from mtrkit.cli.plots import page_of, plot_flops, plot_speed
from mtrkit.measure import Precision
from mtrkit.measure.candidates import ModelChoice, candidates
from mtrkit.measure.evaluation import Reference
from mtrkit.measure.processes import Processes, joined
from mtrkit.measure.report import as_markdown, caption, table
from mtrkit.measure.results import Results, Row
from mtrkit.models import create_model
from mtrkit.patch import Calibration

EPILOG = """examples:
  mtrkit compare --model vim_micro_patch4_stride2_32 --data bundled --method mtr rmeeto random --ratio 0.2 0.3 0.4
  mtrkit compare --model vim_small_patch16_224=vim_s.pth vim_tiny_patch16_224=vim_t.pth --data imagenet/val \\
      --method mtr rmeeto utr hsa evit pumer --out compare.json --table compare.md --plot compare.png compare.svg
  mtrkit compare --model vim_micro_patch4_stride2_32 --data bundled --method runs mtr --page compare.html
  mtrkit compare --model MODEL=FILE --data FOLDER --method rmeeto:layers=even rmeeto:layers=odd --ratio 0 --r 5 11
"""


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
    add_data(parser)
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0.2, 0.3, 0.4])
    add_calibrations(parser)
    parser.add_argument(
        "--against", metavar="METHOD", help="what differences are taken from, or 'dense' (default: the first)"
    )
    add_measuring(parser)
    parser.add_argument("--title", default="", help="a line above table and plots")
    parser.add_argument("--table", type=Path, metavar="FILE", help="Markdown table")
    parser.add_argument(
        "--plot", type=Path, nargs="+", default=[], metavar="FILE", help="accuracy lost against GFLOPs, .png or .svg"
    )
    parser.add_argument(
        "--speed-plot", type=Path, nargs="+", default=[], metavar="FILE", help="accuracy lost against images/s"
    )
    add_page(parser, "the table, and a plot with the numbers of every point")


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the file yet; print, write and plot all."""
    with joined(args.device) as processes:
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    if args.page:
        check_target(args.page, PAGES, "pages")
    results = Results(args.out if processes.main else None)
    device, precision = resolve_running(args), Precision(args.dtype)
    rows: list[Row] = []
    reference: Reference | None = None
    try:
        for choice in args.model:
            model = precision.cast(create_model(choice.name, choice.checkpoint).eval().to(device))
            evaluation = evaluation_from(args, choice.name, choice.checkpoint, model, precision, processes)
            methods = () if reference else args.method
            fitted = [] if reference else [Calibration.load(path) for path in args.calibration]
            found = candidates(model, methods, args.ratio, args.layers, dict(args.option), args.r, fitted)
            reference = reference or Reference(evaluation, model)
            for row in measure_with_progress(evaluation, model, found, results, reference):
                rows.append(row)
    finally:
        if rows and processes.main:
            _report(args, rows)
    return 0


def _report(args: argparse.Namespace, rows: list[Row]) -> None:
    against = args.against or args.method[0].text
    columns, cells = table(rows, against)
    print_table(columns, cells, title=args.title)
    if args.out:
        say(f"{len(rows)} configurations are in {args.out}")
    if args.table:
        head = f"## {args.title}\n\n" if args.title else ""
        text = head + as_markdown(columns, cells) + f"\n{caption(rows, against, args.command_line)}\n"
        args.table.write_text(text, encoding="utf-8")
    if args.plot:
        plot_flops(rows, args.plot, args.title)
    if args.speed_plot:
        plot_speed(rows, args.speed_plot, args.title)
    if args.page:
        save_page(args.page, page_of(rows, args))
