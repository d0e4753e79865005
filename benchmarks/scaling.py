"""Time and memory over the number of tokens, from 196 to 12 544 patches: dense, reduced, and a ViT of the same width.

    python benchmarks/scaling.py --out scaling_cpu.json

Models of each image size are timed in turns. The growth exponent is the slope of log time over log tokens, over the
upper half of the sizes: 1 is linear, 2 quadratic. The ViT is timm's DeiT at these sizes.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import timm
import torch

import mtrkit
from mtrkit.measure import Precision, describe_machine, forward_pass, interleave, peak_memory, summarise, twin

RESULTS = Path(__file__).parent / "results"
DENSE, VIT = "dense", "ViT"


def parse() -> argparse.Namespace:
    """Which models and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vim_tiny_patch16_224")
    parser.add_argument("--vit", default="deit_tiny_patch16_224")
    parser.add_argument("--method", nargs="+", default=["mtr", "runs"])
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--size", type=int, nargs="+", default=[224, 320, 384, 448, 640, 896, 1248, 1792])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", required=True, help="name of a JSON file under benchmarks/results/")
    return parser.parse_args()


def measure(args: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """Rows of one size."""
    device, precision = torch.device(args.device), Precision(args.dtype)
    model = precision.cast(mtrkit.create_model(args.model, img_size=size).eval().to(device))
    models = {DENSE: model}
    for method in args.method:
        models[method] = mtrkit.apply_reduction(twin(model), method, ratio=args.ratio)
    models[VIT] = precision.cast(timm.create_model(args.vit, img_size=size).eval().to(device))
    images = torch.randn(args.batch_size, 3, size, size, device=device, dtype=precision.weights)
    run = {name: forward_pass(one, images, precision) for name, one in models.items()}
    taken = list(interleave(run, device, rounds=args.rounds, seconds=0.2))
    rows = []
    for name, one in models.items():
        timing, held = (
            summarise(taken, name, DENSE, args.batch_size),
            sum(x.nbytes for x in (*one.parameters(), images)),
        )
        memory = peak_memory(run[name], device, held)
        found = {"images_per_second": timing.images_per_second, "speedup": timing.speedup, "peak_memory": memory}
        rows.append({"model": name, "size": size, "patches": model.patch_embed.num_patches} | found)
    return rows


def exponent(rows: list[dict[str, Any]], model: str) -> float:
    """Slope of log time over log patches, by least squares over the upper half of the sizes."""
    points = [(math.log(row["patches"]), -math.log(row["images_per_second"])) for row in rows if row["model"] == model]
    points = points[(len(points) - 1) // 2 :]
    x_mean, y_mean = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def main() -> int:
    """Time, print and write, size by size."""
    args = parse()
    conditions = describe_machine(torch.device(args.device)) | {"command": " ".join(["python", *sys.argv])}
    rows: list[dict[str, Any]] = []
    for size in args.size:
        rows += measure(args, size)
        growth = (
            {model: exponent(rows, model) for model in dict.fromkeys(row["model"] for row in rows)}
            if size != args.size[0]
            else {}
        )
        found = {"conditions": conditions, "growth_exponent": growth, "rows": rows}
        (RESULTS / args.out).write_text(json.dumps(found, indent=1) + "\n")
        for row in rows[-len(args.method) - 2 :]:
            memory = f"{(row['peak_memory'] or 0) / 2**20:.0f} MiB"
            sys.stdout.write(f"{size}: {row['model']}: {row['images_per_second']:.3g} images/s, {memory}\n")
    sys.stdout.write("".join(f"growth exponent of {model}: {value:.2f}\n" for model, value in growth.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
