"""R-MeeTo's findings on re-training, on a reference model: merging or pruning, order, epochs, share of the images.

    python benchmarks/retrain_findings.py --data cifar10/val --training-data cifar10/train --work runs/findings

Each row is one short `mtrkit finetune` on training images and one look at the test images; all begin with the same
weights and differ in what the row names. Rows go to benchmarks/results/retrain/, and what is there is not made again.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from laboratory import DOCS
from retrain import FAST, OUT, RECIPE, right

import mtrkit
from mtrkit.cli.main import main as command
from mtrkit.measure import describe_machine, open_images, paired_difference
from mtrkit.measure.evaluation import pack_right, right_images

SHORT = FAST | {"--epochs": "0.25", "--ema": "0.98"}


class Variant(NamedTuple):
    """A row: how it is reduced, and what its recipe has of its own."""

    name: str
    options: dict[str, str]
    flags: dict[str, str]

    @property
    def method(self) -> str:
        """As the command line takes it."""
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"rmeeto:{options}".rstrip(":")


VARIANTS = (
    Variant("merge", {}, {}),
    Variant("prune", {"operation": "prune"}, {}),
    Variant("order as matching leaves it", {"order": "leave"}, {}),
    Variant("a tenth of the epochs", {}, {"--epochs": "0.025"}),
    Variant("a tenth of the images, as many steps", {}, {"--fraction": "0.1", "--epochs": "2.5"}),
)


def parse() -> argparse.Namespace:
    """Which model, images and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class: images that nothing was tuned on")
    parser.add_argument("--training-data", required=True, help="folder per class")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--model", default="vim_micro_patch4_stride2_32")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--limit", type=int, default=5000, help="test images (default: 5000)")
    return parser.parse_args()


def train(args: argparse.Namespace, variant: Variant) -> Path:
    """Re-train, and return the weights."""
    out = args.work / variant.name.replace(" ", "_").replace(",", "")
    flags = RECIPE | SHORT | variant.flags | {"--method": variant.method, "--ratio": str(args.ratio)}
    given = [part for flag in flags.items() for part in flag]
    if command(["finetune", args.model, "--data", args.training_data, "--out", str(out), *given]):
        raise SystemExit(1)
    return out / "model.safetensors"


def row_of(args: argparse.Namespace, variant: Variant, trained: bool) -> dict:
    """A variant before or after training, from its file or measured now."""
    kind = "retrained" if trained else "as_it_is"
    file = OUT / args.model / "findings" / f"{variant.name.replace(' ', '_').replace(',', '')}_{kind}.json"
    if file.exists():
        return json.loads(file.read_text())
    images = open_images(args.data).spread(args.limit)
    model = mtrkit.create_model(args.model, train(args, variant) if trained else "pretrained")
    mtrkit.apply_reduction(model, "rmeeto", ratio=args.ratio, **variant.options)
    answers = right(model, images)
    row = {
        **{"variant": variant._asdict(), "ratio": args.ratio, "n": len(images), "images": images.digest},
        **{"right": pack_right(answers), "top1": answers.double().mean().item(), "recipe": RECIPE | SHORT},
        "machine": describe_machine(torch.device("cpu")),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def main() -> int:
    """Train and measure what is missing, and write the table."""
    args = parse()
    torch.set_float32_matmul_precision("medium")  # as in retrain.py
    first = row_of(args, VARIANTS[0], True)
    lines = []
    for variant in VARIANTS:
        before, after = row_of(args, variant, False), row_of(args, variant, True)
        apart = paired_difference(right_images(after), right_images(first))
        lines.append(f"| {variant.name} | {100 * before['top1']:.1f} % | {100 * after['top1']:.1f} % | {apart} |")
    script = "python benchmarks/retrain_findings.py"
    how = f"{script} --data cifar10/val --training-data cifar10/train --work runs/findings"
    text = [
        f"# Findings on re-training `{args.model}`",
        "",
        f"`rmeeto` at {args.ratio:g}, top-1 on {first['n']} test images before and after {SHORT['--epochs']} epochs of",
        "48 000 training images (the last two rows: other amounts), and the difference from the first row in points",
        f"with its paired 95 % interval. Made by `{how}`.",
        "",
        "| | before | after | difference |",
        "|---|---|---|---|",
        *lines,
    ]
    (DOCS / args.model / "retrain_findings.md").write_text("\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
