"""Classify the bundled real images with the bundled pretrained model, dense and reduced.

It works offline, prints one table, and saves a picture of which tokens were kept and merged; it takes less than
two minutes on two processor cores.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import torch
from torch import nn

from mtrkit.api import trace_reduction
from mtrkit.cli.console import Output
from mtrkit.cli.files import PICTURES, check_target, save_picture
from mtrkit.cli.loading import count_parameters
from mtrkit.cli.options import add_method, add_ratio, add_threads, ratios
from mtrkit.cli.parsing import positive
from mtrkit.cli.predictions import answers
from mtrkit.errors import OptionError
from mtrkit.measure import (
    Accuracy,
    ImageSet,
    Precision,
    Preprocess,
    Timing,
    batches,
    describe_machine,
    forward_pass,
    interleave,
    open_images,
    predict,
    preprocess_for,
    score,
    summarise,
)
from mtrkit.measure.candidates import DENSE, Candidate, candidates
from mtrkit.measure.images import OWN_IMAGES
from mtrkit.measure.progress import progress
from mtrkit.measure.report import accuracy_of, milliseconds_of, rate_of, speedup_of
from mtrkit.measure.results import Row
from mtrkit.models import create_model
from mtrkit.scan import slow_scan
from mtrkit.vis import Pass, Shown, draw_reduction, patch_grid

EPILOG = """examples:
  mtrkit demo
  mtrkit demo --out tokens.png
  mtrkit demo --method runs --ratio 0.3 0.5 --threads 1
  mtrkit demo --limit 200 --rounds 5 --json
"""

MODEL = "vim_micro_patch4_stride2_32"
RATIOS = (0.2, 0.3, 0.4)
DRAWN = 6  # images in the picture
_BATCH = 64
_PATIENCE = 40.0  # seconds after which no further round of timing begins, on a slow machine
_FULL = Precision("float32")
_COLUMNS = (
    *("ratio", "top-1 % (95 % interval)", "GFLOPs"),
    *("images/s", "ms per batch", "speed-up", "promised by FLOPs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the picture goes, and how much to do."""
    parser.add_argument("--out", type=Path, default=Path("mtrkit_demo.png"), help="picture (default: mtrkit_demo.png)")
    add_method(parser, False, "mtr")
    add_ratio(parser, RATIOS, True)
    parser.add_argument("--limit", type=positive, help="use this many images (default: all 1000)")
    parser.add_argument("--rounds", type=positive, default=25, help="rounds of timing (default: 25)")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Accuracy, speed, table, picture."""
    began, out = time.perf_counter(), Output(args.json)
    check_target(args.out, PICTURES, "pictures")
    if args.threads:
        torch.set_num_threads(args.threads)
    model = create_model(MODEL, "pretrained").eval()
    images = open_images(OWN_IMAGES).spread(args.limit)
    preprocess = preprocess_for(getattr(model, "pretrained_cfg", {}))
    found = candidates(model, [args.method], ratios(args))
    if len(found) == 1:
        raise OptionError("--ratio 0 reduces nothing, so there is nothing to show; give a ratio above 0")
    metadata = describe_machine(torch.device("cpu"))
    _say_what(out, model, images, metadata)
    accuracies = _accuracies(found, images, preprocess)
    timings = _timings(found, next(batches(images, preprocess, _BATCH)), args.rounds)
    rows = [_row(*measured) for measured in zip(found, accuracies, timings, strict=True)]
    out.table(_COLUMNS, map(_cells, rows))
    drawn = found[len(found) // 2]  # a ratio in the middle
    _draw(model, drawn, images, preprocess, args.out)
    out.say(
        f"method: {args.method.text}; ratio: share of the FLOPs removed; n = {len(images)}",
        f"speed: medians of {timings[0].rounds} interleaved rounds, {rows[0]['batch_size']} images at a time",
        f"picture of ratio {drawn.ratio:g}: {args.out.resolve()}",
        f"{time.perf_counter() - began:.0f} seconds",
    )
    picture = {"picture": args.out.resolve(), "picture_ratio": drawn.ratio}
    out.document({"model": MODEL, "machine": metadata, "rows": rows, **picture, "advice": slow_scan("cpu")})
    return 0


def _say_what(out: Output, model: nn.Module, images: ImageSet, metadata: Row) -> None:
    slow = slow_scan("cpu")
    out.say(
        f"{MODEL}: a Vim pretrained on CIFAR-10, {count_parameters(model)}",
        f"{len(images)} CIFAR-10 test images that it has not seen, float32",
        f"{metadata['device']}, {metadata['threads']} threads, torch {metadata['torch']}, scan {metadata['scan']}",
        *([slow] if slow else []),
    )


def _accuracies(found: list[Candidate], images: ImageSet, preprocess: Preprocess) -> list[Accuracy]:
    accuracies = []
    with progress() as bar:
        for candidate in found:
            done = functools.partial(bar.advance, bar.add_task(candidate.name, total=len(images)))
            accuracies.append(score(predict(candidate.model, images, preprocess, progress=done), images))
    return accuracies


def _timings(found: list[Candidate], sample: torch.Tensor, rounds: int) -> list[Timing]:
    passes = {candidate.name: forward_pass(candidate.model, sample, _FULL) for candidate in found}
    taken: list[dict[str, float]] = []
    began = time.perf_counter()
    for times in interleave(passes, sample.device, rounds=rounds, seconds=0.1):
        taken.append(times)
        if time.perf_counter() - began > _PATIENCE:
            break
    return [summarise(taken, candidate.name, DENSE, len(sample)) for candidate in found]


def _row(candidate: Candidate, accuracy: Accuracy, timing: Timing) -> Row:
    """One model, with the names that rows of other commands have."""
    low, high = accuracy.interval
    return {
        "method": candidate.method,
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "top1": accuracy.share,
        "top1_low": low,
        "top1_high": high,
        "correct": accuracy.correct,
        "n": accuracy.n,
        "gflops": candidate.gflops,
        "batch_size": min(_BATCH, accuracy.n),
        **dataclasses.asdict(timing),
        "promised_speedup": candidate.promised,
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        DENSE if row["method"] == DENSE else f"{row['ratio']:g}",
        accuracy_of(row),
        f"{row['gflops']:.4f}",
        rate_of(row),
        milliseconds_of(row),
        speedup_of(row),
        f"×{row['promised_speedup']:.2f}",
    )


def _draw(dense: nn.Module, candidate: Candidate, images: ImageSet, preprocess: Preprocess, out: Path) -> None:
    """The first images of evenly spaced classes, not picked by hand."""
    shown = images.spread(DRAWN)
    seen = [preprocess.cut(opener()) for opener in shown.openers]
    batch = torch.stack([preprocess.tensor(image) for image in seen])
    with torch.inference_mode(), trace_reduction(candidate.model) as trace:
        tops, before = (answers(model(batch), images.classes) for model in (candidate.model, dense))
    names = [images.classes[label] for label in shown.labels]
    inputs = [Shown([image], name, top) for image, name, top in zip(seen, names, before, strict=True)]
    passes = [Pass(candidate.method, f"ratio {candidate.ratio:g}", trace, tops)]
    title = f"{MODEL}: where the tokens go"
    save_picture(draw_reduction(inputs, passes, patch_grid(candidate.model), title=title), out)
