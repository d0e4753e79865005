"""How ``eval`` and ``compare`` measure: their common options, and the rows with a progress bar."""

import argparse
import functools
from collections.abc import Iterator, Sequence

from torch import nn

from mtrkit.cli.inputs import add_views, preprocess_from
from mtrkit.cli.options import add_running
from mtrkit.cli.parsing import positive, whole
from mtrkit.measure import Precision, open_data
from mtrkit.measure.candidates import Candidate
from mtrkit.measure.evaluation import Advance, Evaluation, Reference, measure
from mtrkit.measure.processes import Processes
from mtrkit.measure.progress import progress
from mtrkit.measure.results import Results, Row


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """--batch-size, --workers, --rounds, --out, how to run, and how to look at videos."""
    parser.add_argument("--batch-size", type=positive, default=64, help="images, or views of videos (default: 64)")
    parser.add_argument("--workers", type=positive, default=2, help="threads that read images (default: 2)")
    parser.add_argument("--rounds", type=whole, default=5, help="rounds of timing, 0 for none (default: 5)")
    add_running(parser)
    parser.add_argument(
        "--out", metavar="FILE", help=".json or .csv; rows that are there already are not measured again"
    )
    add_views(parser)


def evaluation_from(
    args: argparse.Namespace,
    name: str,
    checkpoint: str,
    model: nn.Module,
    precision: Precision,
    processes: Processes,
) -> Evaluation:
    """What the options of ``eval`` and ``compare`` say, with what they say in different ways."""
    return Evaluation(
        model=name,
        checkpoint=checkpoint,
        images=open_data(args.data, model).spread(args.limit),
        preprocess=preprocess_from(args, model),
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
