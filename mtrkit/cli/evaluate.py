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

from mtrkit.cli.console import print_table, say
from mtrkit.cli.inputs import add_preprocessing
from mtrkit.cli.loading import load_model
from mtrkit.cli.measuring import add_measuring, evaluation_from, measure_with_progress
from mtrkit.cli.options import add_calibrations, add_data, add_model, add_reduction, positive, resolve_running
from mtrkit.measure import Accuracy, Precision, takes_clips
from mtrkit.measure.candidates import candidates
from mtrkit.measure.processes import Processes, joined
from mtrkit.measure.results import Results, Row
from mtrkit.patch import Calibration

EPILOG = """examples:
  mtrkit eval vim_micro_patch4_stride2_32 --data bundled
  mtrkit eval vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth --data imagenet/val --out vim_t.csv
  mtrkit eval MODEL --checkpoint FILE --data FOLDER --ratio 0 0.2 0.3 --batch-size 128 --dtype amp-bfloat16
  mtrkit eval videomamba_tiny_patch16_224_f8 --checkpoint FILE --data k400/val.csv --segments 4 --crops 3
  torchrun --nproc-per-node 8 -m mtrkit eval MODEL --checkpoint FILE --data "imagenet-val-{0000..0063}.tar"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images and how they are prepared, the reductions, and how to run."""
    add_model(parser, checkpoint="pretrained")
    add_data(parser)
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0, 0.2, 0.3, 0.4])
    add_calibrations(parser)
    add_preprocessing(parser)
    add_measuring(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the file yet, and print all rows."""
    with joined(args.device) as processes:
        return _run(args, processes)


def _run(args: argparse.Namespace, processes: Processes) -> int:
    results = Results(args.out if processes.main else None)
    device, precision = resolve_running(args), Precision(args.dtype)
    model = precision.cast(load_model(args, device))
    evaluation = evaluation_from(args, args.model, str(args.checkpoint), model, precision, processes)
    fitted = [Calibration.load(path) for path in args.calibration]
    found = candidates(model, args.method, args.ratio, args.layers, dict(args.option), args.r, fitted)
    if 0 not in args.ratio:
        found = found[1:]
    if processes.main:
        what = "videos" if takes_clips(model) else "images"
        say(f"{args.model}, {len(evaluation.images)} {what} from {evaluation.images.name}")
    rows: list[Row] = []
    try:
        for row in measure_with_progress(evaluation, model, found, results):
            rows.append(row)
    finally:
        if processes.main:
            _print_rows(rows, args.out)
    return 0


def _print_rows(rows: list[Row], out: str | None) -> None:
    columns = (
        "method",
        "amount",
        "top-1 % (95 % interval)",
        "n",
        "GFLOPs",
        "images/s",
        "speed-up",
        "promised",
    )
    if rows:
        print_table(columns, [_cells(row) for row in rows])
    if out and rows:
        say(f"{len(rows)} configurations are in {out}")


def _cells(row: Row) -> tuple[str, ...]:
    timed = bool(row.get("speedup"))
    return (
        row["method"],
        row["amount"],
        str(Accuracy(int(row["correct"]), int(row["n"]))),
        str(row["n"]),
        f"{float(row['gflops']):.4g}",
        f"{float(row['images_per_second']):.4g}" if timed else "",
        f"×{float(row['speedup']):.2f}" if timed else "",
        f"×{float(row['promised_speedup']):.2f}",
    )
