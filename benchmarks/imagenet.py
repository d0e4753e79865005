"""Reproduce the tables of MTR and R-MeeTo on ImageNet-1k with the official weights, beside the published figures.

    python benchmarks/imagenet.py --data imagenet/val --weights weights/
    python benchmarks/imagenet.py --data imagenet/val --weights hub --only methods rmeeto_sweep --device cuda

WEIGHTS is a folder with the official files under their names (vim_s_midclstok_80p5acc.pth …), or ``hub`` to fetch
them. Images: the 50 000 of the validation set, one folder per class, resized to 256 on the shorter side
(bicubic), the middle 224 × 224 cut out, normalised with ImageNet's mean and standard deviation. Vim-B takes
the averaged (EMA) weights of its file, for which 81.9 % is published; R-MeeTo's training-free figures for Vim-B
are of the others (80.3 %) and therefore not in the tables here. Rows are resumable, as in ``mtrkit compare``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tables import TABLES, Published, Table

from mtrkit.cli.main import main as mtrkit
from mtrkit.measure.report import as_markdown
from mtrkit.models.releases import OFFICIAL


def parse() -> argparse.Namespace:
    """Where images and weights are, and how to run."""
    published = [table.name for table in TABLES if table.published]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the validation images, a folder per class")
    parser.add_argument(
        "--tuning-data", help="training images to calibrate from, a folder per class (default: no such rows)"
    )
    parser.add_argument("--weights", required=True, help="folder with the official files, or 'hub'")
    parser.add_argument("--out", type=Path, default=Path("imagenet"), help="folder for results (default: imagenet)")
    parser.add_argument("--only", nargs="+", choices=published, default=published, help="default: all")
    parser.add_argument("--model", nargs="+", choices=list(OFFICIAL), help="default: all that have figures")
    parser.add_argument("--limit", type=int, help="images to use (default: all)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", help="default: cuda if there is one")
    return parser.parse_args()


def measure(table: Table, model: str, args: argparse.Namespace, more: Sequence[str] = ()) -> list[dict]:
    """Run one table on one model, with more arguments if need be; returns the rows of its results file."""
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{table.name}_{model}.json"
    weights = "pretrained" if args.weights == "hub" else str(Path(args.weights) / OFFICIAL[model].file)
    command = ["compare", "--model", f"{model}={weights}", "--data", args.data, "--out", str(file), "--rounds", "0"]
    command += ["--title", f"{table.title}, {model}", "--batch-size", str(args.batch_size), "--method", *table.methods]
    command += (
        ["--ratio", "0", "--r", *map(str, table.removals)] if table.removals else ["--ratio", *map(str, table.ratios)]
    )
    command += ["--limit", str(args.limit)] if args.limit else []
    if table.calibrated and args.tuning_data:
        files = [calibration(model, weights, ratio, args) for ratio in table.ratios]
        command += ["--calibration", *files]
    command += [*(["--device", args.device] if args.device else []), *more]
    if code := mtrkit(command):
        raise SystemExit(code)
    return json.loads(file.read_text())


def calibration(model: str, weights: str, ratio: float, args: argparse.Namespace) -> str:
    """The file of one calibration from 500 training images, made if it is not there."""
    file = args.out / f"calibration_{model}_{round(100 * ratio)}.safetensors"
    command = ["calibrate", model, "--checkpoint", weights, "--data", args.tuning_data, "--ratio", str(ratio)]
    command += ["--out", str(file), *(["--device", args.device] if args.device else [])]
    if not file.exists() and (code := mtrkit(command)):
        raise SystemExit(code)
    return str(file)


def print_beside(table: Table, published: Published, rows: list[dict]) -> None:
    """Measured top-1 and the published one in brackets, method by method."""
    amounts = [f"r={r}" for r in table.removals] or [f"{ratio:g}" for ratio in table.ratios]
    top1 = {(row["method"], row["amount"]): 100 * row["top1"] for row in rows}
    lines = []
    for method in dict.fromkeys([*table.methods, *(row["method"] for row in rows if row["method"] != "dense")]):
        expected = published.reduced.get(method, (None,) * len(amounts))
        measured = [f"{top1[method, amount]:.1f}" for amount in amounts if (method, amount) in top1]
        lines.append([method, *(m if e is None else f"{m} ({e})" for m, e in zip(measured, expected, strict=True))])
    dense = next(100 * row["top1"] for row in rows if row["method"] == "dense")
    print(f"dense {dense:.1f} ({published.dense})\n\n{as_markdown(['measured (published)', *amounts], lines)}")


def main() -> None:
    """Every table that was asked for, on every model that it has figures for."""
    args = parse()
    for table in (table for table in TABLES if table.name in args.only):
        for model, published in table.published.items():
            if args.model is None or model in args.model:
                print_beside(table, published, measure(table, model, args))


if __name__ == "__main__":
    main()
