"""Measure the speed-up of reduced models beside the one that their FLOPs promise.

Protocol: all models share one set of weights and one batch of random images in memory, or of one image or clip
(--input) repeated; after a warm-up they are timed in turns (CUDA events on a GPU), every round starting with
another one; images/s is the median over the rounds, the speed-up the median of dense time over reduced time within
each round, and in brackets are the quartiles. The peak of memory is what torch holds at most during one pass, weights
and input included. Weights are random unless --checkpoint is given: speed does not depend on them.
"""

import argparse
import dataclasses
from collections.abc import Callable

import torch

from mtrkit.cli.console import print_table, say
from mtrkit.cli.inputs import add_input, read_input
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_model, add_reduction, add_running, positive, resolve_running
from mtrkit.errors import OptionError
from mtrkit.measure import Precision, describe_machine, forward_pass, input_size_of, interleave, peak_memory, summarise
from mtrkit.measure.candidates import DENSE, Candidate, candidates
from mtrkit.measure.memory import Pass
from mtrkit.measure.progress import progress
from mtrkit.measure.results import KEY, Results, Row, configuration_key

EPILOG = """examples:
  mtrkit bench vim_tiny_patch16_224 --batch-size 16 --ratio 0.2 0.3 0.4
  mtrkit bench vim_small_patch16_224 --batch-size 1 16 64 --dtype float16 --out bench.json
  mtrkit bench vim_micro_patch4_stride2_32 --ratio 0.05 0.3 --rounds 30 --compile
  mtrkit bench videomamba_tiny_patch16_224_f8 --batch-size 4 --input clip.mp4 --method rmeeto --layers even
"""

_MOST_COMPILED = 8  # torch compiles a function this often before it gives up and runs it uncompiled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the reductions, and how to run and to measure."""
    add_model(parser, checkpoint=None)
    add_reduction(parser, [0.2, 0.3, 0.4])
    add_input(parser, "what to run on, repeated, instead of random numbers")
    parser.add_argument("--batch-size", nargs="+", type=positive, default=[1, 16, 64], help="default: 1 16 64")
    parser.add_argument("--rounds", type=positive, default=15, help="rounds of timing (default: 15)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.2,
        help="least time per model and round; repeats fill it (default: 0.2)",
    )
    parser.add_argument("--compile", action="store_true", help="run the models through torch.compile")
    add_running(parser)
    parser.add_argument("--out", metavar="FILE", help=".json or .csv with everything, this command line included")


def run(args: argparse.Namespace) -> int:
    """Measure one batch size after the other; an interruption loses only the round that is running."""
    results = Results(args.out)
    device, precision = resolve_running(args), Precision(args.dtype)
    model = precision.cast(load_model(args, device))
    sample = None if args.input is None else read_input(args.input, args, model)[1]
    found = candidates(model, args.method, args.ratio, args.layers, dict(args.option), args.r)
    if args.compile and len(found) > _MOST_COMPILED:
        raise OptionError(f"--compile takes at most {_MOST_COMPILED - 1} reductions at a time, not {len(found) - 1}")
    metadata = describe_machine(device) | {
        "model": args.model,
        "checkpoint": str(args.checkpoint),
        "input": args.input,
        "dtype": args.dtype,
        "compile": args.compile,
        "command": args.command_line,
    }
    _print_head(args, metadata, found)
    for batch_size in args.batch_size:
        size = (batch_size, *input_size_of(model))
        x = torch.randn(size) if sample is None else sample.expand(size).contiguous()
        _measure(args, found, x.to(device, precision.weights), precision, metadata, results)
    return 0


def _measure(
    args: argparse.Namespace,
    found: list[Candidate],
    x: torch.Tensor,
    precision: Precision,
    metadata: Row,
    results: Results,
) -> None:
    """Time one batch; on an interruption save and print the finished rounds, and pass it on."""
    batch_size, device = len(x), x.device
    passes = {candidate.name: _prepare(candidate, x, precision, args.compile) for candidate in found}
    memory = {name: peak_memory(run, device, _held(found[0].model, x)) for name, run in passes.items()}
    taken: list[dict[str, float]] = []
    try:
        with progress() as bar:
            task = bar.add_task(f"batch {batch_size}", total=args.rounds)
            for times in interleave(passes, device, rounds=args.rounds, seconds=args.seconds):
                taken.append(times)
                bar.advance(task)
    finally:
        if taken:
            rows = [_row(candidate, taken, batch_size, memory[candidate.name], metadata) for candidate in found]
            results.add(*rows)
            title = f"batch {batch_size}, {len(taken)} rounds"
            print_table(_columns(memory), [_cells(row) for row in rows], title=title)


def _held(model: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes of the weights, which all models share, and of the input."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), x))


def _prepare(candidate: Candidate, x: torch.Tensor, precision: Precision, compiled: bool) -> Pass:
    model: Callable[..., object] = candidate.model
    if compiled:
        if candidate.name == DENSE:
            torch.compiler.reset()  # or the limit on compilations counts those of other batch sizes too
        model = torch.compile(candidate.model, dynamic=False)
    return forward_pass(model, x, precision)


def _row(
    candidate: Candidate, taken: list[dict[str, float]], batch_size: int, memory: int | None, metadata: Row
) -> Row:
    timing = summarise(taken, candidate.name, DENSE, batch_size)
    row = {
        "method": candidate.method,
        "ratio": candidate.ratio,
        "ratio_reached": candidate.reached,
        "tokens": list(candidate.info.tokens) if candidate.info else [],
        "gflops": candidate.gflops,
        "batch_size": batch_size,
        **dataclasses.asdict(timing),
        "promised_speedup": candidate.promised,
        "share": timing.speedup / candidate.promised,
        "peak_memory": memory,
        **metadata,
    }
    return {KEY: configuration_key(row)} | row


def _columns(memory: dict[str, int | None]) -> list[str]:
    columns = [
        "method",
        "ratio",
        "reached",
        "images/s (quartiles)",
        "speed-up (quartiles)",
        "promised",
        "share",
    ]
    return columns if None in memory.values() else [*columns, "peak MiB"]


def _cells(row: Row) -> list[str]:
    low, high = row["quartiles"]
    slow, fast = row["speedup_quartiles"]
    cells = [
        row["method"],
        f"{row['ratio']:g}",
        f"{row['ratio_reached']:.3f}",
        f"{row['images_per_second']:.4g} ({low:.4g}–{high:.4g})",
        f"×{row['speedup']:.2f} ({slow:.2f}–{fast:.2f})",
        f"×{row['promised_speedup']:.2f}",
        f"{row['share']:.2f}",
    ]
    return cells if row["peak_memory"] is None else [*cells, f"{row['peak_memory'] / 2**20:.0f}"]


def _print_head(args: argparse.Namespace, metadata: Row, found: list[Candidate]) -> None:
    weights = f"weights from {args.checkpoint}" if args.checkpoint else "random weights"
    size = "×".join(map(str, input_size_of(found[0].model)[1:]))
    run = f"{args.dtype}, {'compiled' if args.compile else 'not compiled'}"
    say(
        f"{args.model} at {size}, {weights}, {run}, {found[0].gflops:.4g} GFLOPs per image",
        f"{metadata['device']}, {metadata['cores']} cores, {metadata['threads']} threads, {metadata['system']}",
        f"mtrkit {metadata['mtrkit']} {metadata['commit']}, torch {metadata['torch']}, python {metadata['python']}, "
        f"scan {metadata['scan']}, {metadata['time']}",
    )
