"""What keeping time brings on the reference models: `runs`, calibrated or not, beside `mtr`, all paired with dense.

    python benchmarks/runs.py --data cifar10/val --tuning-data cifar10/train        # in the repository's root

One `mtrkit calibrate` per model and ratio, on images for tuning, then one `mtrkit compare` per model. The first model
is timed too, and a smaller dense one stands beside it. Calibrations and raw rows go to benchmarks/results/runs/, tables
and plots to docs/laboratory/. What is there already is not made again: remove a file to redo it.
"""

import argparse
from pathlib import Path

from laboratory import DOCS, MODELS, RESULTS

from mtrkit.cli.main import main as mtrkit

RATIOS = (0.3, 0.4, 0.5)
OUT = RESULTS.parent / "runs"
SMALLER = {"vim_micro_patch4_stride2_32": "vim_nano_patch4_stride2_32"}  # as many tokens, trained as long
TITLE = "Keeping time: `runs`, and `runs` calibrated, beside `mtr`"


def parse() -> argparse.Namespace:
    """Which models, which images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class: images that nothing was tuned on")
    parser.add_argument("--tuning-data", required=True, help="the same: training images, whose labels are not used")
    parser.add_argument("--model", nargs="+", default=MODELS, help="names, the largest first")
    parser.add_argument("--limit", type=int, default=5000, help="images for each table (default: 5000)")
    parser.add_argument("--tuning-limit", type=int, default=500, help="images to calibrate from (default: 500)")
    return parser.parse_args()


def main() -> int:
    """Calibrate, then compare."""
    args = parse()
    for model in args.model:
        folder = OUT / model
        folder.mkdir(parents=True, exist_ok=True)
        (DOCS / model).mkdir(parents=True, exist_ok=True)
        files = {ratio: folder / f"calibration_{round(100 * ratio)}.safetensors" for ratio in RATIOS}
        for ratio, file in files.items():
            images = ["--data", args.tuning_data, "--limit", str(args.tuning_limit)]
            if not file.exists() and mtrkit(["calibrate", model, *images, "--ratio", str(ratio), "--out", str(file)]):
                return 1
        if mtrkit(compare(args, model, files)):
            return 1
    return 0


def compare(args: argparse.Namespace, model: str, files: dict[float, Path]) -> list[str]:
    """The `mtrkit compare` of one model, with its calibrations."""
    dense = [model, SMALLER[model]] if model in SMALLER else [model]
    command = ["compare", "--model", *dense, "--data", args.data, "--limit", str(args.limit), "--title", TITLE]
    command += ["--method", "runs", "mtr", "--ratio", *map(str, RATIOS), "--against", "dense"]
    command += ["--calibration", *map(str, files.values()), "--out", str(OUT / model / "compare.json")]
    command += ["--table", str(DOCS / model / "runs.md"), "--plot", *plots(model, "runs")]
    timed = ["--batch-size", "16", "--rounds", "12", "--speed-plot", *plots(model, "runs_speed")]
    return command + (timed if model in SMALLER else ["--rounds", "0"])


def plots(model: str, name: str) -> list[str]:
    """Where a plot goes, in both formats."""
    return [str(DOCS / model / f"{name}.{suffix}") for suffix in ("png", "svg")]


if __name__ == "__main__":
    raise SystemExit(main())
