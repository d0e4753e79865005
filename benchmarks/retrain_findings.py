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
from mtrkit.schedule import EveryNth

SHORT = FAST | {"--epochs": "0.25", "--ema": "0.98"}


class Variant(NamedTuple):
    """A row: how it is reduced, what its recipe has of its own, and the row that it is to be compared with."""

    name: str
    options: dict[str, str]
    flags: dict[str, str]
    against: str = "merge"
    every_second: bool = False  # after every second block to 0.28, where the order shows, instead of three to --ratio

    @property
    def method(self) -> str:
        """As the command line takes it."""
        options = self.options | ({"layers": "even"} if self.every_second else {})
        return f"rmeeto:{','.join(f'{name}={value}' for name, value in options.items())}".rstrip(":")

    @property
    def file(self) -> str:
        """Its name among files."""
        return self.name.replace(" ", "_").replace(",", "")

    def ratio(self, usual: float) -> float:
        """Share of the FLOPs that is removed."""
        return 0.28 if self.every_second else usual


OFTEN = "merge, every second block, 0.28"
VARIANTS = (
    Variant("merge", {}, {}),
    Variant("prune", {"operation": "prune"}, {}),
    Variant("order as matching leaves it", {"order": "leave"}, {}),
    Variant("a tenth of the epochs", {}, {"--epochs": "0.025"}),
    Variant("a tenth of the images, as many steps", {}, {"--fraction": "0.1", "--epochs": "2.5"}),
    Variant(OFTEN, {}, {}, OFTEN, True),
    Variant("order as matching leaves it, every second block, 0.28", {"order": "leave"}, {}, OFTEN, True),
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
    out, ratio = args.work / variant.file, variant.ratio(args.ratio)
    flags = RECIPE | SHORT | variant.flags | {"--method": variant.method, "--ratio": str(ratio)}
    given = [part for flag in flags.items() for part in flag]
    if command(["finetune", args.model, "--data", args.training_data, "--out", str(out), *given]):
        raise SystemExit(1)
    return out / "model.safetensors"


def row_of(args: argparse.Namespace, variant: Variant, trained: bool) -> dict:
    """A variant before or after training, from its file or measured now."""
    kind = "retrained" if trained else "as_it_is"
    file = OUT / args.model / "findings" / f"{variant.file}_{kind}.json"
    if file.exists():
        return json.loads(file.read_text())
    images = open_images(args.data).spread(args.limit)
    model = mtrkit.create_model(args.model, train(args, variant) if trained else "pretrained")
    ratio, layers = variant.ratio(args.ratio), EveryNth(2) if variant.every_second else None
    mtrkit.apply_reduction(model, "rmeeto", ratio=ratio, layers=layers, **variant.options)
    answers = right(model, images)
    row = {
        **{"variant": variant._asdict(), "ratio": ratio, "n": len(images), "images": images.digest},
        **{
            "right": pack_right(answers),
            "top1": answers.double().mean().item(),
            "recipe": RECIPE | SHORT | variant.flags,
        },
        "machine": describe_machine(torch.device("cpu")),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def main() -> int:
    """Train and measure what is missing, and write the table."""
    args = parse()
    torch.set_float32_matmul_precision("medium")  # as in retrain.py
    lines, found = [], {}
    for variant in VARIANTS:
        before, after = row_of(args, variant, False), row_of(args, variant, True)
        found[variant.name] = after
        apart = paired_difference(right_images(after), right_images(found[variant.against]))
        lines.append(f"| {variant.name} | {100 * before['top1']:.1f} % | {100 * after['top1']:.1f} % | {apart} |")
    script, epochs = "python benchmarks/retrain_findings.py", SHORT["--epochs"]
    how = f"{script} --data cifar10/val --training-data cifar10/train --work runs/findings"
    text = [
        f"# Findings on re-training `{args.model}`",
        "",
        f"`rmeeto` at {args.ratio:g}, top-1 on {found['merge']['n']} test images before and after {epochs} epochs of",
        "48 000 training images (or a tenth), and the difference from the first row in points, of the last two rows",
        f"from the former of them, with its paired 95 % interval. Made by `{how}`.",
        "",
        "| | before | after | difference |",
        "|---|---|---|---|",
        *lines,
    ]
    (DOCS / args.model).mkdir(parents=True, exist_ok=True)
    (DOCS / args.model / "retrain_findings.md").write_text("\n".join(text) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
