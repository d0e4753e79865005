"""How ``eval`` and ``compare`` measure: their common options, and the rows with a progress bar."""

import argparse
import functools
from collections.abc import Iterator, Sequence

from torch import nn

from mtrkit.cli.options import add_running, positive, whole
from mtrkit.measure import Precision, Preprocess, open_images
from mtrkit.measure.candidates import Candidate
from mtrkit.measure.evaluation import Advance, Evaluation, Reference, measure
from mtrkit.measure.processes import Processes
from mtrkit.measure.progress import progress
from mtrkit.measure.results import Results, Row


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """--batch-size, --workers, --rounds, --out and how to run."""
    parser.add_argument("--batch-size", type=positive, default=64, help="default: 64")
    parser.add_argument("--workers", type=positive, default=2, help="threads that read images (default: 2)")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds of timing, 0 for none (default: 5)")
    add_running(parser)
    parser.add_argument(
        "--out", metavar="FILE", help=".json or .csv; rows that are there already are not measured again"
    )


def evaluation_from(
    args: argparse.Namespace,
    model: str,
    checkpoint: str,
    preprocess: Preprocess,
    precision: Precision,
    processes: Processes,
) -> Evaluation:
    """What the options of ``eval`` and ``compare`` say, with what they say in different ways."""
    return Evaluation(
        model=model,
        checkpoint=checkpoint,
        images=open_images(args.data).spread(args.limit),
        preprocess=preprocess,
        precision=precision,
        batch_size=args.batch_size,
        workers=args.workers,
        rounds=args.rounds,
        command=args.command_line,
        processes=processes,
    )


def measure_with_progress(
    evaluation: Evaluation,
    dense: nn.Module,
    candidates: Sequence[Candidate],
    results: Results,
    reference: Reference | None = None,
) -> Iterator[Row]:
    """The rows of :func:`mtrkit.measure.evaluation.measure`, with a bar for each candidate that is being measured."""
    processes = evaluation.processes
    share = -(-len(evaluation.images) // processes.count)
    with progress(processes.main) as bar:

        def begin(name: str) -> Advance:
            return functools.partial(bar.advance, bar.add_task(name, total=share))

        yield from measure(evaluation, dense, candidates, results, reference, begin)
