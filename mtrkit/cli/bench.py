"""Measure the speed-up of reduced models beside the one that their FLOPs promise.

Protocol: all models share one set of weights and one batch of random images in memory, or of one image or clip
(--input) repeated; after a warm-up they are timed in turns (CUDA events on a GPU), every round starting with
another one; images/s is the median over the rounds, ms per batch what it comes to, the speed-up the median of dense
time over reduced time within each round, and in brackets are the quartiles. The peak of memory is what torch holds at
most during one pass, weights and input included. Weights are random unless --checkpoint is given: speed does not depend
on them, but for --threshold, whose number of tokens is that of this batch.
"""

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from mtrkit.cli.console import Output
from mtrkit.cli.inputs import add_input, read_input
from mtrkit.cli.loading import load_model
from mtrkit.cli.options import add_model, add_reduction, add_running, ratios, resolve_running
from mtrkit.cli.parsing import positive
from mtrkit.errors import OptionError
from mtrkit.measure import Precision, describe_machine, forward_pass, input_size_of, interleave, peak_memory, summarise
from mtrkit.measure.candidates import DENSE, RANDOM, Candidate, candidates
from mtrkit.measure.memory import RunPass
from mtrkit.measure.progress import progress
from mtrkit.measure.report import amount_heading, milliseconds_of, number, only_ratios, rate_of
from mtrkit.measure.results import KEY, Results, Row, configuration_key
from mtrkit.scan import slow_scan

EPILOG = """examples:
  mtrkit bench vim_tiny_patch16_224 --batch-size 16 --ratio 0.2 0.3 0.4
  mtrkit bench vim_small_patch16_224 --batch-size 1 16 64 --dtype float16 --out bench.json
  mtrkit bench vim_micro_patch4_stride2_32 --ratio 0.05 0.3 --rounds 30 --compile
  mtrkit bench vim_tiny_patch16_224 --checkpoint vim_t.pth --input photo.jpg --method runs --threshold 0.95 0.9 --json
  mtrkit bench videomamba_tiny_patch16_224_f8 --batch-size 4 --input clip.mp4 --method rmeeto --layers even
"""

_MOST_COMPILED = 8  # torch compiles a function this often before it gives up and runs it uncompiled


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the reductions, and how to run and to measure."""
    add_model(parser, None)
    add_reduction(parser, [0.2, 0.3, 0.4], thresholds=True)
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
    found = _candidates(args, model)
    if args.compile and len(found) > _MOST_COMPILED:
        raise OptionError(f"--compile takes at most {_MOST_COMPILED - 1} reductions at a time, not {len(found) - 1}")
    bench = _Bench(args, Output(args.json), precision, _metadata(args, device), results)
    bench.print_head(found[0])
    try:
        for batch_size in args.batch_size:
            size = (batch_size, *input_size_of(model))
            x = torch.randn(size) if sample is None else sample.expand(size).contiguous()
            # New ones, as what a threshold removes is counted from the beginning on.
            bench.measure(_candidates(args, model), x.to(device, precision.weights))
    finally:
        bench.out.document({"rows": bench.rows, "out": args.out, "advice": slow_scan(device)})
    return 0


def _candidates(args: argparse.Namespace, model: nn.Module) -> list[Candidate]:
    given = (args.method, ratios(args), args.layers, dict(args.option), args.r)
    return candidates(model, *given, thresholds=args.threshold)


def _metadata(args: argparse.Namespace, device: torch.device) -> Row:
    """What is the same for all rows."""
    return describe_machine(device) | {
        "model": args.model,
        "checkpoint": args.checkpoint or RANDOM,
        "input": args.input,
        "dtype": args.dtype,
        "compile": args.compile,
        "command": args.command_line,
    }


@dataclass
class _Bench:
    """How to measure, and the rows that were measured."""

    args: argparse.Namespace
    out: Output
    precision: Precision
    metadata: Row
    results: Results
    rows: list[Row] = field(default_factory=list)

    def measure(self, found: list[Candidate], x: torch.Tensor) -> None:
        """Time one batch; on an interruption save and print the finished rounds, and pass it on."""
        passes = {candidate.name: _prepare(candidate, x, self.precision, self.args.compile) for candidate in found}
        memory = {name: peak_memory(run, x.device, _held(found[0].model, x)) for name, run in passes.items()}
        taken: list[dict[str, float]] = []
        try:
            with progress() as bar:
                task = bar.add_task(f"batch {len(x)}", total=self.args.rounds)
                for times in interleave(passes, x.device, rounds=self.args.rounds, seconds=self.args.seconds):
                    taken.append(times)
                    bar.advance(task)
        finally:
            if taken:
                peaks = [memory[candidate.name] for candidate in found]
                now = [candidate.measured() for candidate in found]
                rows = [_row(one, taken, len(x), peak, self.metadata) for one, peak in zip(now, peaks, strict=True)]
                self._add(rows, f"batch {len(x)}, {len(taken)} rounds")

    def _add(self, rows: list[Row], title: str) -> None:
        self.rows += rows
        self.results.add(*rows)
        self.out.table(_columns(rows), [_cells(row, rows) for row in rows], title=title)
        self.out.say(*_what_pays(rows))

    def print_head(self, dense: Candidate) -> None:
        """What is measured, and on what."""
        args, told = self.args, self.metadata
        weights = "random weights" if args.checkpoint is None else f"weights from {args.checkpoint}"
        size = "×".join(map(str, input_size_of(dense.model)[1:]))
        run = f"{args.dtype}, {'compiled' if args.compile else 'not compiled'}"
        slow = slow_scan(next(dense.model.parameters()).device)
        self.out.say(
            f"{args.model} at {size}, {weights}, {run}, {dense.gflops:.4g} GFLOPs per image",
            f"{told['device']}, {told['cores']} cores, {told['threads']} threads, {told['system']}",
            f"mtrkit {told['mtrkit']} {told['commit']}, torch {told['torch']}, python {told['python']}, "
            f"scan {told['scan']}, {told['time']}",
            *([slow] if slow else []),
        )


def _held(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of the weights, which all models share, and of the input."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), x))


def _prepare(candidate: Candidate, x: torch.Tensor, precision: Precision, compiled: bool) -> RunPass:
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
        "amount": candidate.amount,
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


def _what_pays(rows: list[Row]) -> list[str]:
    """Of each method that was slower than the dense model somewhere, a line on what pays at this batch size."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != DENSE):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: float(row["ratio_reached"]))
        slow = [place for place, row in enumerate(own) if row["speedup"] < 1]
        if slow:
            faster, batch_size = own[slow[-1] + 1 :], own[0]["batch_size"]
            pays = f"it pays from {faster[0]['amount']} on" if faster else "none of the amounts pays"
            last = own[slow[-1]]["amount"]
            lines.append(f"{method} at {last} is slower than the dense model; at batch size {batch_size} {pays}")
    return lines


def _columns(rows: list[Row]) -> list[str]:
    return [
        *("method", amount_heading(rows), "images/s (quartiles)", "ms per batch", "speed-up (quartiles)"),
        *("by FLOPs", "share"),
        *([] if only_ratios(rows) else ["ratio reached"]),
        *([] if rows[0]["peak_memory"] is None else ["peak MiB"]),
    ]


def _cells(row: Row, rows: list[Row]) -> list[str]:
    low, high = row["quartiles"]
    slow, fast = row["speedup_quartiles"]
    return [
        row["method"],
        row["amount"],
        f"{rate_of(row)} ({number(low, 3)}–{number(high, 3)})",
        milliseconds_of(row),
        f"×{row['speedup']:.2f} ({slow:.2f}–{fast:.2f})",
        f"×{row['promised_speedup']:.2f}",
        f"{row['share']:.2f}",
        *([] if only_ratios(rows) else [f"{row['ratio_reached']:.3f}"]),
        *([] if row["peak_memory"] is None else [f"{row['peak_memory'] / 2**20:.0f}"]),
    ]
