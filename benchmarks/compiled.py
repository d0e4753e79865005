"""Compiled by torch.compile against eager, in turns: speed, graphs, and the time that compiling takes.

    python benchmarks/compiled.py --out compiled_cpu.json

The first pass of each compiled model compiles it; that is its `seconds_to_compile`.
"""

import argparse
import itertools
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

import mtrkit
from mtrkit.measure import describe_machine, input_size_of, interleave, keep_freed_memory

RESULTS = Path(__file__).parent / "results"
EAGER, COMPILED = "eager", "compiled"


def parse() -> argparse.Namespace:
    """Which models, reductions and batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vim_tiny_patch16_224", "vim_micro_patch4_stride2_32"])
    parser.add_argument("--method", nargs="+", default=["mtr", "runs"])
    parser.add_argument("--ratio", nargs="+", type=float, default=[0.0, 0.3], help="0 is the dense model")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True, help="name of a JSON file under benchmarks/results/")
    return parser.parse_args()


def measure(name: str, method: str, ratio: float, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    device = torch.device(args.device)
    model = mtrkit.create_model(name).eval().to(device)
    if ratio:
        mtrkit.apply_reduction(model, method, ratio=ratio)
    images = torch.randn(batch, *input_size_of(model), device=device)
    torch.compiler.reset()
    counters.clear()
    compiled, begin = torch.compile(model), time.perf_counter()
    with torch.inference_mode():
        apart = (compiled(images) - model(images)).norm() / model(images).norm()
        took = time.perf_counter() - begin
        passes = {EAGER: lambda: model(images), COMPILED: lambda: compiled(images)}
        rounds = [*interleave(passes, device, rounds=args.rounds, seconds=0.5)]
    return {
        **{"model": name, "method": method if ratio else "dense", "ratio": ratio, "batch_size": batch},
        "eager_milliseconds": round(1e3 * statistics.median(seconds[EAGER] for seconds in rounds), 2),
        "speedup": round(statistics.median(seconds[EAGER] / seconds[COMPILED] for seconds in rounds), 3),
        "seconds_to_compile": round(took, 1),
        "graphs": counters["stats"]["unique_graphs"],
        "apart": float(f"{apart.item():.1e}"),
    }


def main() -> None:
    """Measure and write."""
    args = parse()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    about = {"command": shlex.join(["python", *sys.argv])} | describe_machine(torch.device(args.device))
    rows: list[dict[str, Any]] = []
    for name, ratio, batch in itertools.product(args.models, args.ratio, args.batch_size):
        for method in args.method if ratio else args.method[:1]:
            rows.append(measure(name, method, ratio, batch, args))
            print(rows[-1])
            text = json.dumps(about | {"rows": rows}, indent=1) + "\n"
            (RESULTS / args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
