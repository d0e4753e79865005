"""Measure accuracy, FLOPs and speed of a model on a folder of images, dense and reduced.

The folder has one folder of images per class, in the order of the model's classes. With --out every finished
configuration is written at once; the same command again continues where an interrupted one stopped.
"""

import argparse
import dataclasses
import functools
import json
from typing import cast

import torch

from mtrkit.cli.console import print_table, progress, say
from mtrkit.cli.loading import Candidate, candidates, image_shape, load_model
from mtrkit.cli.options import add_model, add_reduction, add_running, positive, resolve_running
from mtrkit.cli.results import KEY, Results, Row, configuration_key
from mtrkit.measure import (
    INTERPOLATIONS,
    Accuracy,
    ImageSet,
    Precision,
    Preprocess,
    batches,
    check_classes,
    describe_machine,
    forward_pass,
    interleave,
    open_images,
    predict,
    preprocess_for,
    score,
    summarise,
    weights_digest,
)
from mtrkit.measure.images import BUNDLED

EPILOG = """examples:
  mtrkit eval vim_micro_patch4_32 --data bundled
  mtrkit eval vim_tiny_patch16_224 --checkpoint vim_t_midclstok_76p1acc.pth --data imagenet/val --out vim_t.csv
  mtrkit eval MODEL --checkpoint FILE --data FOLDER --ratio 0 0.2 0.3 --batch-size 128 --dtype amp-bfloat16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the images and how they are prepared, the reductions, and how to run."""
    add_model(parser, checkpoint="pretrained")
    parser.add_argument("--data", required=True, metavar="FOLDER", help=f"a folder per class, or {BUNDLED!r}")
    parser.add_argument("--limit", type=positive, help="use this many images, at even distances (default: all)")
    add_reduction(parser, [0, 0.2, 0.3, 0.4])
    add_preprocessing(parser)
    parser.add_argument("--batch-size", type=positive, default=64, help="default: 64")
    parser.add_argument("--workers", type=positive, default=2, help="threads that read images (default: 2)")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of timing (default: 5)")
    add_running(parser)
    parser.add_argument(
        "--out", metavar="FILE", help=".json or .csv; rows that are there already are not measured again"
    )


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """--mean, --std, --crop and --interpolation; each default is the model's own."""
    parser.add_argument("--mean", nargs=3, type=float, metavar=("R", "G", "B"), help="of values in [0, 1]")
    parser.add_argument("--std", nargs=3, type=float, metavar=("R", "G", "B"))
    parser.add_argument("--crop", type=float, help="share of the resized image that is used, in (0, 1]")
    parser.add_argument("--interpolation", choices=list(INTERPOLATIONS))


def preprocess_from(args: argparse.Namespace, model: torch.nn.Module) -> Preprocess:
    """The model's own preprocessing, with what the arguments change."""
    return preprocess_for(
        getattr(model, "pretrained_cfg", {}),
        size=image_shape(model)[1:],
        mean=args.mean and tuple(args.mean),
        std=args.std and tuple(args.std),
        crop=args.crop,
        interpolation=args.interpolation,
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is not in the file yet, and print all rows."""
    results = Results(args.out)
    device, precision = resolve_running(args), Precision(args.dtype)
    model = precision.cast(load_model(args, device))
    images, preprocess = open_images(args.data).spread(args.limit), preprocess_from(args, model)
    check_classes(_num_classes(model), images)
    found = candidates(model, args.method, args.ratio, args.layers, dict(args.option))
    if 0 not in args.ratio:
        found = found[1:]
    configuration = {
        "model": args.model,
        "weights": weights_digest(model),
        "data": images.digest,
        "preprocess": str(preprocess),
        "dtype": args.dtype,
        "device": str(device),
    }
    keys = {_key(configuration, candidate): candidate for candidate in found}
    say(f"{args.model}, {len(images)} images from {images.name}")
    try:
        _measure_all(args, model, keys, results, images, preprocess, precision)
    finally:
        _print_rows([row for key in keys if (row := results.find(key))], args.out)
    return 0


def _measure_all(
    args: argparse.Namespace,
    model: torch.nn.Module,
    keys: dict[str, Candidate],
    results: Results,
    images: ImageSet,
    preprocess: Preprocess,
    precision: Precision,
) -> None:
    device = next(model.parameters()).device
    about = {
        "model": args.model,
        "checkpoint": str(args.checkpoint),
        "data": images.name,
        "dtype": args.dtype,
    }
    about |= describe_machine(device) | {"command": args.command_line}
    pending = {key: candidate for key, candidate in keys.items() if results.find(key) is None}
    sample = next(batches(images, preprocess, args.batch_size)).to(device, precision.weights) if pending else None
    with progress() as bar:
        for key, candidate in pending.items():
            task = bar.add_task(candidate.name, total=len(images))
            predicted = predict(
                candidate.model,
                images,
                preprocess,
                batch_size=args.batch_size,
                precision=precision,
                workers=args.workers,
                progress=functools.partial(bar.advance, task),
            )
            assert sample is not None
            speed = _time(candidate, model, sample, precision, args.rounds)
            results.add({KEY: key} | _row(candidate, score(predicted, images)) | speed | about)


def _time(candidate: Candidate, dense: torch.nn.Module, sample: torch.Tensor, precision: Precision, rounds: int) -> Row:
    """Images per second of one candidate, in turns with the dense model, on one batch in memory."""
    models = {"dense": dense, candidate.name: candidate.model}
    passes = {name: forward_pass(model, sample, precision) for name, model in models.items()}
    taken = list(interleave(passes, sample.device, rounds=rounds, seconds=0.1))
    timing = summarise(taken, candidate.name, "dense", len(sample))
    return {"batch_size": len(sample)} | dataclasses.asdict(timing)


def _row(candidate: Candidate, accuracy: Accuracy) -> Row:
    low, high = accuracy.interval
    return {
        "method": candidate.method,
        "options": json.dumps(dict(candidate.options)),
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "tokens": list(candidate.info.tokens) if candidate.info else [],
        "top1": accuracy.share,
        "top1_low": low,
        "top1_high": high,
        "correct": accuracy.correct,
        "n": accuracy.n,
        "gflops": candidate.gflops,
        "promised_speedup": candidate.promised,
    }


def _num_classes(model: torch.nn.Module) -> int:
    return cast(int, model.num_classes)


def _key(configuration: dict[str, str], candidate: Candidate) -> str:
    done = candidate.info
    reduction = {"method": candidate.method, "ratio": candidate.ratio}
    chosen = {"options": done.options, "layers": done.layers} if done else {}
    return configuration_key(configuration | reduction | chosen)


def _print_rows(rows: list[Row], out: str | None) -> None:
    columns = (
        "method",
        "ratio",
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
    return (
        row["method"],
        f"{float(row['ratio']):g}",
        str(Accuracy(int(row["correct"]), int(row["n"]))),
        str(row["n"]),
        f"{float(row['gflops']):.4g}",
        f"{float(row['images_per_second']):.4g}",
        f"×{float(row['speedup']):.2f}",
        f"×{float(row['promised_speedup']):.2f}",
    )
