"""Compare reduction methods on one or more models: accuracy, FLOPs, speed, and which differences are real.

All methods reduce to the same share of the FLOPs, on the same images, each after the blocks that are its default.
Differences between methods are paired: only images on which one is right and the other wrong count, so they are known
far better than the accuracies. A smaller dense model beside a reduced larger one answers whether to reduce at all.
Everything is timed in turns with the first model as it is. Several processes share the images if `torchrun` or
`accelerate launch` starts the command; the rows are those of one process, and the main one times alone while the
others wait.
"""

import argparse
import importlib.util
from pathlib import Path

from mtrkit.cli.console import Output
from mtrkit.cli.files import PAGES, PLOTS, TABLE_MARK, add_page, check_target, save_page
from mtrkit.cli.loading import build, check_checkpoint
from mtrkit.cli.measuring import add_measuring, evaluation_from, measure_with_progress
from mtrkit.cli.options import add_calibrations, add_data, add_reduction, ratios, resolve_running
from mtrkit.cli.parsing import positive
from mtrkit.cli.plots import page_of, plot_flops, plot_speed
from mtrkit.errors import OptionError
from mtrkit.measure import Precision
from mtrkit.measure.candidates import DENSE, ModelChoice, calibrated_names, candidates
from mtrkit.measure.evaluation import Reference
from mtrkit.measure.processes import Processes, joined
from mtrkit.measure.report import as_markdown, caption, differences, table, tables_by_amount
from mtrkit.measure.results import Results, Row
from mtrkit.patch import Calibration
from mtrkit.scan import slow_scan

EPILOG = """examples:
  mtrkit compare --model vim_micro_patch4_stride2_32 --data bundled --method mtr rmeeto random --ratio 0.2 0.3 0.4
  mtrkit compare --model vim_small_patch16_224=vim_s.pth vim_tiny_patch16_224=vim_t.pth --data imagenet/val \\
      --method mtr rmeeto utr hsa evit pumer --out compare.json --table compare.md --plot compare.png compare.svg
  mtrkit compare --model vim_micro_patch4_stride2_32 --data bundled --method runs mtr --page compare.html
  mtrkit compare --model MODEL=FILE --data FOLDER --method rmeeto:layers=even rmeeto:layers=odd --r 5 11
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Models, images, methods, how to measure, and where to write."""
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        type=ModelChoice.parse,
        metavar="NAME[=CHECKPOINT]",
        help="the first is reduced, further ones stay dense beside it; CHECKPOINT as --checkpoint of other commands, "
        "'random' too (default: 'pretrained')",
    )
    add_data(parser)
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0.2, 0.3, 0.4], thresholds=True)
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
    results = Results(args.out if processes.main else None)
    fitted = [Calibration.load(path) for path in args.calibration]
    _check(args, calibrated_names(fitted))
    device, precision = resolve_running(args), Precision(args.dtype)
    rows: list[Row] = []
    reference: Reference | None = None
    try:
        for choice in args.model:
            model = precision.cast(build(args, choice.name, choice.weights, reduced=reference is None).to(device))
            evaluation = evaluation_from(args, choice.name, choice.checkpoint, model, precision, processes)
            methods = () if reference else args.method
            given = (methods, ratios(args), args.layers, dict(args.option), args.r)
            found = candidates(model, *given, [] if reference else fitted, args.threshold)
            reference = reference or Reference(evaluation, model)
            for row in measure_with_progress(evaluation, model, found, results, reference):
                rows.append(row)
    finally:
        if rows and processes.main:
            _report(args, rows, slow_scan(device))
    return 0


def _check(args: argparse.Namespace, fitted: list[str]) -> None:
    """Find mistakes in what is read and written before anything is measured or fetched."""
    for choice in args.model:
        check_checkpoint(choice.weights, choice.name)
    known = [DENSE, *(method.text for method in args.method), *fitted]
    if args.against not in (None, *known):
        raise OptionError(f"--against {args.against} is not among what is compared: {', '.join(known)}")
    if (args.plot or args.speed_plot) and importlib.util.find_spec("matplotlib") is None:
        raise OptionError("plots need matplotlib: pip install 'mtrkit[vis]'")
    if args.table is not None:
        check_target(args.table, (".md",), "tables")
    if args.page is not None:
        check_target(args.page, PAGES, "pages")
    for file in (*args.plot, *args.speed_plot):
        check_target(file, PLOTS, "plots")


def _report(args: argparse.Namespace, rows: list[Row], slow: str) -> None:
    out, against = Output(args.json), args.against or args.method[0].text
    notes = [args.title, slow, f"n = {rows[0]['n']}; * the interval leaves out zero"]
    out.say(*filter(None, notes))
    for cells in tables_by_amount(rows, against):
        out.table(cells.columns, cells.lines, title=cells.title)
    if args.out:
        out.say(f"{len(rows)} configurations are in {args.out}")
    paired = {"against": against, "differences": differences(rows, against)}
    out.document({"rows": rows, **paired, "out": args.out, "advice": slow})
    _write(args, rows, against)


def _write(args: argparse.Namespace, rows: list[Row], against: str) -> None:
    """The files that were asked for."""
    if args.table:
        columns, cells = table(rows, against)
        head = f"{TABLE_MARK}\n\n" + (f"## {args.title}\n\n" if args.title else "")
        text = head + as_markdown(columns, cells) + f"\n{caption(rows, against, args.command_line)}\n"
        args.table.write_text(text, encoding="utf-8", errors="backslashreplace")
    if args.plot:
        plot_flops(rows, args.plot, args.title)
    if args.speed_plot:
        plot_speed(rows, args.speed_plot, args.title)
    if args.page:
        save_page(page_of(rows, args), args.page)
