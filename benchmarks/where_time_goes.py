"""Where the time of a forward pass on a CPU goes: in the compiled library, around it, and beside two yardsticks.

    python benchmarks/where_time_goes.py --out where_vim_tiny_cpu.json

Three tables: whole passes, dense and reduced, with what is spent in calls of the library; one block by the number of
its tokens; and the yardsticks, which are the multiplications at the speed of torch's own product of large matrices and
the weights at the speed at which memory is copied. Medians, all in turns.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

import mtrkit
from mtrkit.measure import Precision, describe_machine, forward_pass, input_size_of, keep_freed_memory, twin
from mtrkit.native import library
from mtrkit.native.chain import Chain
from mtrkit.native.jobs import HEADER
from mtrkit.native.library import Library
from mtrkit.native.mixer import append_blocks, place_block

RESULTS = Path(__file__).parent / "results"
KINDS = {
    **{library.PROJECT: "products", library.PACK: "packing of weights", library.SCAN_FORWARD: "scan"},
    **{library.NORM: "norm", library.SUM: "means of Δ", library.SPLIT: "ranking", library.MATCH: "matching"},
    **{library.NEIGHBORS: "neighbours", library.COSINES: "cosines", library.BY_TURNS: "halves", library.LINKS: "links"},
    **{library.SLOTS: "numbering", library.MERGE: "merging", library.FOLLOW: "slots", library.ROUND: "lengths"},
    library.ADD: "sum",
}
TOKENS = (1, 16, 48, 98, 197)
LARGE = 1024  # side of a product that is as fast as products get
COPIED = 64 << 20  # numbers, more than fit into any cache


def parse() -> argparse.Namespace:
    """Which model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny_patch16_224")
    parser.add_argument("--method", default="mtr")
    parser.add_argument("--ratio", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", required=True, help="name of a JSON file under benchmarks/results/")
    return parser.parse_args()


class Watch:
    """How long the calls of the library take, and how many there are."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._run = 0.0, 0, Library._run

    def __call__(self, library: Library, *given: object) -> None:
        """Run, and count."""
        began = time.perf_counter()
        self._run(library, *given)
        self.seconds, self.calls = self.seconds + time.perf_counter() - began, self.calls + 1


def in_turns(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each, those inside of the library, and its calls."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in jobs}
    for _ in range(3 + rounds):
        for name, job in jobs.items():
            watch = Watch()
            with patch.object(Library, "_run", lambda library, *given, watch=watch: watch(library, *given)):
                began = time.perf_counter()
                job()
                found[name].append((time.perf_counter() - began, watch.seconds, watch.calls))
    taken = {name: [statistics.median(part) for part in zip(*rows[3:], strict=True)] for name, rows in found.items()}
    return {
        name: {"ms": 1e3 * whole, "ms_in_library": 1e3 * inside, "calls": calls}
        for name, (whole, inside, calls) in taken.items()
    }


def passes(args: argparse.Namespace, model: torch.nn.Module, batch: int) -> list[dict[str, object]]:
    """Whole passes, dense and reduced."""
    images = torch.randn(batch, *input_size_of(model))
    models = {0.0: model} | {r: mtrkit.apply_reduction(twin(model), args.method, ratio=r) for r in args.ratio}
    jobs = {f"{ratio:g}": forward_pass(reduced, images, Precision("float32")) for ratio, reduced in models.items()}
    found = in_turns(jobs, args.rounds)
    promised = {"0": 1.0} | {f"{r:g}": mtrkit.reduction_info(models[r]).promised_speedup for r in args.ratio}
    dense = found["0"]
    return [
        {"batch_size": batch, "ratio": float(name), "promised": promised[name], **row}
        | {"share": dense["ms"] / row["ms"] / promised[name]}
        | {"share_in_library": dense["ms_in_library"] / row["ms_in_library"] / promised[name]}
        for name, row in found.items()
    ]


def kernels(args: argparse.Namespace, model: torch.nn.Module) -> list[dict[str, float]]:
    """What each kind of job takes in a pass of one image, every job in a call of its own, less an empty call."""
    images, rows = torch.randn(1, *input_size_of(model)), []
    for ratio in (0.0, *args.ratio):
        reduced = mtrkit.apply_reduction(twin(model), args.method, ratio=ratio) if ratio else model
        watch = EachJob()
        with patch.object(Library, "_run", lambda library, *given, watch=watch: watch(library, *given)):
            for _ in range(3 + args.rounds):
                watch.passes.append(Counter())
                reduced(images)
        taken = {KINDS[kind]: statistics.median(one[kind] for one in watch.passes[3:]) for kind in watch.passes[-1]}
        rows.append({"ratio": ratio} | dict(sorted(taken.items(), key=lambda one: -one[1])))
    return rows


class EachJob:
    """Runs the jobs of a chain one by one, and notes the milliseconds of each kind."""

    def __init__(self) -> None:
        self.passes: list[Counter[int]] = []
        self._run = Library._run

    def __call__(self, library: Library, chain: bytes, count: int) -> None:
        """Run, and note."""
        chain, at = bytes(chain), 0
        for _ in range(count):
            kind, size = HEADER.unpack_from(chain, at)
            end = at + HEADER.size + size
            began = time.perf_counter()
            self._run(library, b"", 0)
            empty = time.perf_counter()
            self._run(library, chain[at:end], 1)
            self.passes[-1][kind] += 1e3 * (time.perf_counter() - empty - (empty - began))
            at = end


def blocks(args: argparse.Namespace, model: torch.nn.Module) -> list[dict[str, object]]:
    """All blocks in one call, divided by their number, by the tokens of one image."""
    weights = [place_block(block.weights(), torch.float32) for block in model.layers]
    width = model.embed_dim

    def job(tokens: int) -> Callable[[], object]:
        x, residual = torch.randn(2, 1, tokens, width)

        def run() -> None:
            with Chain() as chain:
                append_blocks(chain, x, residual, weights)

        return run

    found = in_turns({str(tokens): job(tokens) for tokens in TOKENS}, args.rounds)
    each = {name: row["ms_in_library"] / len(weights) for name, row in found.items()}
    return [{"tokens": int(name), "ms_in_library": ms} for name, ms in each.items()]


def yardsticks(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, float]:
    """Milliseconds that the multiplications and the weights of a dense pass of one image would take so."""
    a, b = torch.randn(2, LARGE, LARGE)
    source = torch.randn(COPIED)
    target = torch.empty_like(source)
    found = in_turns({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, args.rounds)
    flops = 2 * LARGE**3 / found["product"]["ms"]
    bandwidth = 2 * source.nbytes / found["copy"]["ms"]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    needed = 2e9 * mtrkit.count_flops(model, directions="all").gflops  # the papers count a multiply-add as one
    return {
        "gflops_per_s": flops / 1e6,
        "gbytes_per_s": bandwidth / 1e6,
        "ms_of_arithmetic": needed / flops,
        "ms_of_weights": weights / bandwidth,
    }


def main() -> int:
    """Time, print and write."""
    args = parse()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    model = mtrkit.create_model(args.model).eval()
    with torch.inference_mode():
        rows = [row for batch in args.batch_size for row in passes(args, model, batch)]
        parts = {"kernels": kernels(args, model), "blocks": blocks(args, model)}
        found = {"passes": rows, **parts, "yardsticks": yardsticks(args, model)}
    conditions = describe_machine(torch.device("cpu")) | {"command": " ".join(["python", *sys.argv])}
    (RESULTS / args.out).write_text(json.dumps({"conditions": conditions, **found}, indent=1) + "\n")
    for row in (*found["passes"], *found["kernels"], *found["blocks"], found["yardsticks"]):
        sys.stdout.write(", ".join(f"{name} {value:.4g}" for name, value in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
