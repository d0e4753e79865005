"""Classify the bundled real images with the bundled pretrained model, dense and reduced by MTR.

It works offline, prints one table, and saves a picture of which tokens were kept and merged; it takes less than
two minutes on two processor cores.
"""

import argparse
import functools
import time
from pathlib import Path

import torch

from mtrkit.api import trace_reduction
from mtrkit.cli.console import print_table, say
from mtrkit.cli.loading import count_parameters
from mtrkit.cli.options import method, positive
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
from mtrkit.measure.images import BUNDLED
from mtrkit.measure.progress import progress
from mtrkit.models import create_model
from mtrkit.vis import draw_reduction, patch_grid

EPILOG = """examples:
  mtrkit demo
  mtrkit demo --out tokens.png
"""

MODEL = "vim_micro_patch4_stride2_32"
RATIOS = (0.2, 0.3, 0.4)
DRAWN = 6  # images in the picture
_BATCH = 64
_PATIENCE = 40.0  # seconds after which no further round of timing begins, on a slow machine
_FULL = Precision("float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the picture goes, and how much to do."""
    parser.add_argument("--out", type=Path, default=Path("mtrkit_demo.png"), help="picture (default: mtrkit_demo.png)")
    parser.add_argument("--limit", type=positive, help="use this many images (default: all 1000)")
    parser.add_argument("--rounds", type=positive, default=25, help="rounds of timing (default: 25)")


def run(args: argparse.Namespace) -> int:
    """Accuracy, speed, table, picture."""
    began = time.perf_counter()
    model = create_model(MODEL, "pretrained").eval()
    images, preprocess = open_images(BUNDLED).spread(args.limit), preprocess_for(getattr(model, "pretrained_cfg", {}))
    found = candidates(model, [method("mtr")], RATIOS)
    metadata = describe_machine(torch.device("cpu"))
    say(
        f"{MODEL}: a Vim pretrained on CIFAR-10, {count_parameters(model)}",
        f"{len(images)} CIFAR-10 test images that it has not seen, float32",
        f"{metadata['device']}, {metadata['threads']} threads, torch {metadata['torch']}, scan {metadata['scan']}",
    )
    accuracies = _accuracies(found, images, preprocess)
    timings = _timings(found, next(batches(images, preprocess, _BATCH)), args.rounds)
    columns = ("ratio", "top-1 (95 % interval)", "GFLOPs", "images/s", "speed-up", "promised by FLOPs")
    print_table(columns, map(_cells, found, accuracies, timings))
    _draw(found[2], images, preprocess, args.out)
    say(
        f"ratio: share of the FLOPs removed; n = {len(images)}",
        f"speed: medians of {timings[0].rounds} interleaved rounds, {_BATCH} images at a time",
        f"picture of ratio {found[2].ratio:g}: {args.out.resolve()}",
        f"{time.perf_counter() - began:.0f} seconds",
    )
    return 0


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


def _cells(candidate: Candidate, accuracy: Accuracy, timing: Timing) -> tuple[str, ...]:
    return (
        DENSE if candidate.info is None else f"{candidate.ratio:g}",
        str(accuracy),
        f"{candidate.gflops:.4f}",
        f"{timing.images_per_second:.0f}",
        f"×{timing.speedup:.2f}",
        f"×{candidate.promised:.2f}",
    )


def _draw(candidate: Candidate, images: ImageSet, preprocess: Preprocess, out: Path) -> None:
    """The first images of evenly spaced classes, not picked by hand."""
    shown = images.spread(DRAWN)
    seen = [preprocess.cut(opener()) for opener in shown.openers]
    with torch.inference_mode(), trace_reduction(candidate.model) as trace:
        predicted = candidate.model(torch.stack([preprocess.tensor(image) for image in seen])).argmax(dim=-1)
    captions = [
        f"{images.classes[label]}, predicted {images.classes[number]}"
        for label, number in zip(shown.labels, predicted.tolist(), strict=True)
    ]
    title = f"{MODEL}, mtr at ratio {candidate.ratio:g}: where the tokens go"
    draw_reduction(seen, trace, patch_grid(candidate.model), captions, title).save(out)
