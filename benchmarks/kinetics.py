"""Reproduce R-MeeTo's tables of VideoMamba on Kinetics-400 with the official weights, beside the published figures.

    python benchmarks/kinetics.py --data k400/val.csv --weights weights/
    torchrun --nproc-per-node 8 benchmarks/kinetics.py --data k400/val.csv --weights hub --r 88 --dtype amp-bfloat16

DATA is a list with a line ``path label`` for each validation video, or a folder of videos per class. WEIGHTS is a
folder with the official files under their names (videomamba_t16_k400_f8_res224.pth …), or ``hub`` to fetch them. A clip
has 8 frames, one of each of 8 equal parts of the video; a video is seen in 4 segments × 3 crops of 224 × 224 at a
shorter side of 224, and the probabilities of its 12 views are averaged, as VideoMamba is tested. The published figures
were made in bfloat16. Rows are resumable, as in ``mtrkit compare``; GFLOPs are those of one view.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from imagenet import measure, print_beside
from tables import KINETICS, KINETICS_MAIN, Published, Table

VIEWS = ("--segments", "4", "--crops", "3", "--average", "probabilities")


def parse() -> argparse.Namespace:
    """Where videos and weights are, and how to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="list or folder of the validation videos")
    parser.add_argument("--weights", required=True, help="folder with the official files, or 'hub'")
    parser.add_argument("--out", type=Path, default=Path("kinetics"), help="folder for results (default: kinetics)")
    parser.add_argument("--model", nargs="+", choices=list(KINETICS.published), help="default: all")
    parser.add_argument("--r", nargs="+", type=int, choices=KINETICS.removals, help="default: all")
    parser.add_argument("--beside", nargs="+", default=[], metavar="METHOD", help="further methods at the same r")
    parser.add_argument("--limit", type=int, help="videos to use (default: all)")
    parser.add_argument("--batch-size", type=int, default=48, help="views per pass (default: 48)")
    parser.add_argument("--dtype", default="float32", help="as of mtrkit compare (default: float32)")
    parser.add_argument("--device", help="default: cuda if there is one")
    return parser.parse_args()


def chosen(args: argparse.Namespace) -> Table:
    """The table with the amounts and methods that were asked for."""
    kept = [index for index, r in enumerate(KINETICS.removals) if args.r is None or r in args.r]
    published = {
        model: Published(known.dense, {name: tuple(row[i] for i in kept) for name, row in known.reduced.items()})
        for model, known in KINETICS.published.items()
    }
    return dataclasses.replace(
        KINETICS,
        methods=(*KINETICS.methods, *args.beside),
        removals=tuple(KINETICS.removals[index] for index in kept),
        published=published,
    )


def print_main(model: str, rows: list[dict]) -> None:
    """The line of the paper's main table, at r = 88."""
    main = KINETICS_MAIN[model]
    dense = next(row for row in rows if row["method"] == "dense")
    found = next((row for row in rows if row["amount"] == "r=88" and row["method"] in KINETICS.methods), None)
    if found is not None:
        costs = [f"{row['gflops']:.2f} ({cost})" for row, cost in zip((dense, found), main.gflops, strict=True)]
        print(
            f"r = 88: {100 * found['top1']:.1f} ({main.free}, re-trained {main.retrained}), GFLOPs {' → '.join(costs)}"
        )


def main() -> None:
    """Every model that was asked for."""
    args = parse()
    table = chosen(args)
    for model in args.model or table.published:
        rows = measure(table, model, args, [*VIEWS, "--dtype", args.dtype])
        if os.environ.get("RANK", "0") == "0":  # of the processes that measure together one prints
            print_beside(table, table.published[model], rows)
            print_main(model, rows)


if __name__ == "__main__":
    main()
