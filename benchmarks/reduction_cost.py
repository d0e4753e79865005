"""What reducing itself costs: each method beside `random`, which drops as many tokens without looking at them.

    python benchmarks/reduction_cost.py --out reduction_cost_cpu.json

Models of all methods have the same tokens in every block and are timed in turns. What a method takes beyond `random`
goes into reading signals, scoring, matching and merging; the table has it in milliseconds per reducing block and as a
share of the dense pass. It is negative where a method's jobs are part of the chain of its blocks: those of `random` are
not.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

import mtrkit
from mtrkit.measure import Precision, describe_machine, forward_pass, input_size_of, interleave, twin

RESULTS = Path(__file__).parent / "results"
DENSE, LEAST = "dense", "random"


def parse() -> argparse.Namespace:
    """Which model and methods, and how much is removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny_patch16_224")
    parser.add_argument("--method", nargs="+", default=["mtr", "runs", "rmeeto", "utr", "evit", "pumer", "neighbor"])
    parser.add_argument("--r", type=int, default=30, help="tokens removed after each layer")
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 10, 15])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True, help="name of a JSON file under benchmarks/results/")
    return parser.parse_args()


def measure(args: argparse.Namespace, batch: int) -> list[dict[str, object]]:
    """Rows of one batch size."""
    device, precision = torch.device(args.device), Precision(args.dtype)
    model = precision.cast(mtrkit.create_model(args.model).eval().to(device))
    images = torch.randn(batch, *input_size_of(model), device=device, dtype=precision.weights)
    models = {DENSE: model}
    for method in (LEAST, *args.method):
        models[method] = mtrkit.apply_reduction(twin(model), method, r=args.r, layers=args.layers)
    run = {name: forward_pass(reduced, images, precision) for name, reduced in models.items()}
    taken = list(interleave(run, device, rounds=args.rounds, seconds=0.2))
    rows = []
    for method in args.method:
        beyond = statistics.median(times[method] - times[LEAST] for times in taken)
        share = statistics.median((times[method] - times[LEAST]) / times[DENSE] for times in taken)
        cost = {"milliseconds_per_layer": 1e3 * beyond / len(args.layers), "share_of_dense": share}
        rows.append({"method": method, "batch_size": batch, "rounds": len(taken)} | cost)
    return rows


def main() -> int:
    """Time, print and write."""
    args = parse()
    rows = [row for batch in args.batch_size for row in measure(args, batch)]
    conditions = describe_machine(torch.device(args.device)) | {"command": " ".join(["python", *sys.argv])}
    (RESULTS / args.out).write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")
    for row in rows:
        cost = (
            f"{row['milliseconds_per_layer']:.3f} ms per layer, {100 * row['share_of_dense']:.1f} % of the dense pass"
        )
        sys.stdout.write(f"batch {row['batch_size']}, {row['method']}: {cost}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
