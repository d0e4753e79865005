"""Measure accuracy, FLOPs and speed of a model on images or videos, dense and reduced.

The data is a folder of images per class, in the order of the model's classes, or WebDataset shards: .tar files with
KEY.jpg and KEY.cls, the number of the class, and optionally classes.txt with the names of the classes beside them. For
a model of clips it is a folder of videos per class, or a list with a line `path label` for each video, again with an
optional classes.txt; GFLOPs and images/s then are those of one view.

With --out every finished configuration is written at once; the same command again continues where an interrupted one
stopped. Several processes share the images if `torchrun` or `accelerate launch` starts the command; the rows are those
of one process, and the main one times alone while the others wait.
"""

import argparse

from mtrkit.cli.console import Output
from mtrkit.cli.inputs import add_preprocessing
from mtrkit.cli.loading import load_model
from mtrkit.cli.measuring import add_measuring, evaluation_from, measure_with_progress
from mtrkit.cli.options import add_calibrations, add_data, add_model, add_reduction, ratios, resolve_running
from mtrkit.cli.parsing import positive
from mtrkit.cli.predictions import RANDOM_NOTE
from mtrkit.measure import Precision, takes_clips
from mtrkit.measure.candidates import RANDOM, candidates
from mtrkit.measure.evaluation import Evaluation
from mtrkit.measure.processes import Processes, joined
from mtrkit.measure.report import accuracy_of, amount_heading, milliseconds_of, number, rate_of, speedup_of
from mtrkit.measure.results import Results, Row
from mtrkit.patch import Calibration
from mtrkit.scan import slow_scan

EPILOG = """examples:
  mtrkit eval vim_micro_patch4_stride2_32 --data bundled
  mtrkit eval vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth --data imagenet/val --out vim_t.csv
  mtrkit eval MODEL --checkpoint FILE --data FOLDER --ratio 0 0.2 0.3 --batch-size 128 --dtype amp-bfloat16
  mtrkit eval MODEL --checkpoint FILE --data FOLDER --method runs --threshold 0.95 0.9 --batch-size 1 --json
  mtrkit eval videomamba_tiny_patch16_224_f8 --checkpoint FILE --data k400/val.csv --segments 4 --crops 3
  torchrun --nproc-per-node 8 -m mtrkit eval MODEL --checkpoint FILE --data "imagenet-val-{0000..0063}.tar"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images and how they are prepared, the reductions, and how to run."""
    add_model(parser, "pretrained")
    add_data(parser)
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0, 0.2, 0.3, 0.4], thresholds=True)
    add_calibrations(parser)
    add_preprocessing(parser)
    add_measuring(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the file yet, and print all rows."""
    with joined(args.device) as processes:
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    results, out = Results(args.out if processes.main else None), Output(args.json)
    device, precision = resolve_running(args), Precision(args.dtype)
    model = precision.cast(load_model(args, device))
    evaluation = evaluation_from(args, args.model, args.checkpoint or RANDOM, model, precision, processes)
    fitted = [Calibration.load(path) for path in args.calibration]
    given = (args.method, ratios(args), args.layers, dict(args.option), args.r, fitted, args.threshold)
    found = candidates(model, *given)
    if 0 not in ratios(args):
        found = found[1:]
    if processes.main:
        _say_what(out, args, evaluation, takes_clips(model), slow_scan(device))
    rows: list[Row] = []
    try:
        for row in measure_with_progress(evaluation, model, found, results):
            rows.append(row)
    finally:
        if processes.main:
            _print_rows(out, rows, args.out)
            out.document({"rows": rows, "out": args.out, "advice": slow_scan(device)})
    return 0


def _say_what(out: Output, args: argparse.Namespace, evaluation: Evaluation, clips: bool, slow: str) -> None:
    what = "videos" if clips else "images"
    out.say(f"{args.model}, {len(evaluation.images)} {what} from {evaluation.images.name}")
    if args.checkpoint is None:
        out.say(RANDOM_NOTE)
    if slow:
        out.say(slow)


def _print_rows(out: Output, rows: list[Row], file: str | None) -> None:
    if not rows:
        return
    columns = ["method", amount_heading(rows), "top-1 % (95 % interval)", "GFLOPs"]
    columns += ["images/s", "ms per batch", "speed-up", "by FLOPs"]
    out.table(columns, map(_cells, rows), title=f"n = {rows[0]['n']}")
    if file:
        out.say(f"{len(rows)} configurations are in {file}")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["method"],
        row["amount"],
        accuracy_of(row),
        number(float(row["gflops"])),
        rate_of(row),
        milliseconds_of(row),
        speedup_of(row),
        f"×{float(row['promised_speedup']):.2f}",
    )
