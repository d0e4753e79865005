"""What training brings back on a reference model: `mtr`, `runs` and R-MeeTo's reducer, before and after, and DyVM.

    python benchmarks/retrain.py --data cifar10/val --training-data cifar10/train --work runs/retrain

One `mtrkit finetune` per reducer and ratio, and two for DyVM, on training images, of which 2 000 are held out, then one
look at the test images. A smaller dense model that is trained on as many images stands beside. Runs go to the folder
`--work`, and one that was interrupted goes on; rows go to benchmarks/results/retrain/ and the table to
docs/laboratory/. What is there already is not made again: remove a row's file to redo it. With `--table-only` the table
is made of what is there.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from laboratory import DOCS, RESULTS

import mtrkit
from mtrkit.cli.main import main as command
from mtrkit.finetune.curve import read_curve
from mtrkit.measure import ImageSet, describe_machine, open_images, paired_difference, predict, preprocess_for
from mtrkit.measure.accuracy import batches
from mtrkit.measure.evaluation import pack_right, right_images
from mtrkit.models.releases import BUNDLED

OUT = RESULTS.parent / "retrain"
RATIOS = (0.3, 0.4, 0.5, 0.6)
# Small images and a short run: augmentation as in the models' own training. The rates were chosen on the held-out
# training images. At 2e-4 `runs` at 0.5, which has lost little, ended below where it began.
RECIPE = {
    "--batch-size": "64",
    "--clip-norm": "1",
    "--mixup": "0",
    "--cutmix": "0",
    "--auto-augment": "none",
    "--color-jitter": "0",
    "--erase": "0",
    "--crop-scale": "0.6",
    "--repeats": "1",
    "--held-out": "2000",
}
# The models know their training images nearly by heart: mixed ones teach, and what the dense model says of them.
FAST = {"--epochs": "2", "--lr": "8e-4", "--min-lr": "1e-5", "--ema": "0.99", "--mixup": "0.8", "--cutmix": "1"}
FAST |= {"--distill": "4", "--teacher": "before"}
GENTLE = {"--epochs": "0.25", "--lr": "3e-5", "--min-lr": "1e-6", "--distill": "1", "--ema": "0.98"}
REDUCERS = {"mtr": FAST, "runs": GENTLE, "rmeeto": FAST}
LAYERS = {0.6: (2, 4, 6, 8)}  # so much is out of reach of the default three
# The paper's weights of its loss, which has its own teacher; the paper trains for 30 epochs at a low rate. Few steps
# leave the predictors undecided. With noise they would draw other patches in training than they keep at inference.
# Then a second run trains the weights alone, as those of a reducer.
DYVM = "dyvm:keep=0.7,block_target=0.9,noise=0"
OWN = {"--warmup-epochs": "0", "--weight-decay": "1e-8", "--distill": "0", "--teacher": "itself"}
RECIPES = REDUCERS | {DYVM: FAST | OWN}
THEN = {DYVM: FAST | {"--epochs": "1"}}


def parse() -> argparse.Namespace:
    """Which model, images, reducers and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder per class: images that nothing was tuned on")
    parser.add_argument("--training-data", required=True, help="folder per class")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--model", default="vim_micro_patch4_stride2_32")
    parser.add_argument("--smaller", default="vim_nano_patch4_stride2_32", help="dense model to stand beside")
    parser.add_argument("--method", nargs="+", choices=REDUCERS, default=list(REDUCERS))
    parser.add_argument("--ratio", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--limit", type=int, default=5000, help="test images (default: 5000)")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="FLAG", help="more for `mtrkit finetune`, as A=B")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    return parser.parse_args()


def right(model: torch.nn.Module, images: ImageSet) -> torch.Tensor:
    """(n,) bool, which images a model classifies rightly."""
    predicted = predict(model.eval(), images, preprocess_for(model.pretrained_cfg))
    return predicted == torch.tensor(images.labels)


def minutes(log: Path) -> float:
    """Of its steps at their median speed, reading of images included, measuring, saving and interruptions not."""
    speeds = [row["images_per_s"] for row in read_curve(log)]
    return len(speeds) * int(RECIPE["--batch-size"]) / statistics.median(speeds) / 60


def train(args: argparse.Namespace, name: str, method: str, ratio: float) -> tuple[Path, float]:
    """Re-train with a reducer, or dense at ratio 0; the weights and the minutes it took."""
    out = args.work / f"{name}_{short(method)}_{round(100 * ratio)}"
    given = ["--layers", *map(str, LAYERS[ratio])] if ratio in LAYERS else []
    flags = recipe_of(args, method, ratio) | {"--method": method, "--ratio": str(ratio)}
    took = finetune(args, out, [name, *given], flags)
    if method not in THEN:
        return out / "model.safetensors", took
    before, out = out, out.with_name(out.name + "_then")
    flags = RECIPE | THEN[method] | {"--checkpoint": before / "model.safetensors", "--teacher": BUNDLED[name]}
    flags["--method"] = f"dyvm:checkpoint={before / 'dyvm.safetensors'}"
    return out / "model.safetensors", took + finetune(args, out, [name], flags)


def recipe_of(args: argparse.Namespace, method: str, ratio: float) -> dict[str, str]:
    """The flags of the first run."""
    return RECIPE | (RECIPES[method] if ratio else FAST) | dict(flag.split("=", 1) for flag in args.recipe)


def finetune(args: argparse.Namespace, out: Path, given: list[str], flags: dict[str, object]) -> float:
    """One `mtrkit finetune`; the minutes it took."""
    words = [str(part) for flag in flags.items() for part in flag]
    if command(["finetune", *given, "--data", args.training_data, "--out", str(out), *words]):
        raise SystemExit(1)
    return minutes(out / "log.csv")


def short(method: str) -> str:
    """A method's name in those of files."""
    return method.split(":")[0]


def load(name: str, weights: Path | str, method: str, ratio: float, images: ImageSet) -> torch.nn.Module:
    """The model as it answers, reduced unless the ratio is 0."""
    model = mtrkit.create_model(name, weights)
    if method == DYVM:
        mtrkit.apply_reduction(model, "dyvm", checkpoint=Path(weights).with_name("dyvm.safetensors"))
        some = torch.cat(list(batches(images.spread(500), preprocess_for(model.pretrained_cfg), 50)))
        mtrkit.dyvm.measure_scan_share(model.eval(), some)
    elif ratio:
        mtrkit.apply_reduction(model, method, ratio=ratio, layers=LAYERS.get(ratio))
    return model


def row_of(args: argparse.Namespace, images: ImageSet, name: str, method: str, ratio: float, trained: bool) -> dict:
    """One line of the table, from its file or measured now."""
    kind = "retrained" if trained else "as_it_is"
    file = OUT / name / f"{short(method)}_{round(100 * ratio)}_{kind}.json"
    if file.exists() or args.table_only:
        return json.loads(file.read_text()) if file.exists() else {}
    weights, took = train(args, name, method, ratio) if trained else ("pretrained", 0.0)
    model = load(name, weights, method, ratio, images)
    answers = right(model, images)
    row = {
        **{"model": name, "method": method, "ratio": ratio, "minutes": took},
        **{"gflops": mtrkit.count_flops(model).gflops, "n": len(images), "images": images.digest},
        **{"right": pack_right(answers), "top1": answers.double().mean().item()},
        "recipe": recipe_of(args, method, ratio) if trained else {},
        "then": THEN.get(method, {}) if trained else {},
        "machine": describe_machine(torch.device("cpu")),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def cell(row: dict, dense: dict) -> str:
    """Accuracy, and the difference from the dense model on the same images."""
    if not row:
        return "–"
    runs = [recipe["--epochs"] for recipe in (row["recipe"], row.get("then")) if recipe]
    took = f", {' + '.join(runs)} epochs, {row['minutes']:.0f} min" if runs else ""
    return f"{100 * row['top1']:.1f} %, {paired_difference(right_images(row), right_images(dense))}{took}"


def main() -> int:
    """Train and measure what is missing, and write the table."""
    args = parse()
    torch.set_float32_matmul_precision("medium")  # on CPUs without AMX the same bits, by oneDNN, which is faster on AMD
    images = open_images(args.data).spread(args.limit)
    dense = row_of(args, images, args.model, "mtr", 0.0, False)
    lines = [(f"`{args.model}` dense", [cell(dense, dense)] * len(args.ratio))]
    for method in args.method:
        rows = [row_of(args, images, args.model, method, ratio, False) for ratio in args.ratio]
        lines.append((f"`{method}`, training-free", [cell(row, dense) for row in rows]))
        rows = [row_of(args, images, args.model, method, ratio, True) for ratio in args.ratio]
        lines.append((f"`{method}`, re-trained", [cell(row, dense) for row in rows]))
    alone = [(args.model, DYVM, 0.35, True, "DyVM"), (args.smaller, "mtr", 0.0, False, f"`{args.smaller}` dense")]
    alone.append((args.smaller, "mtr", 0.0, True, f"`{args.smaller}` dense, trained further"))
    for *asked, name in alone:
        row = row_of(args, images, *asked)
        share = f", {100 * (1 - row['gflops'] / dense['gflops']):.0f} % fewer FLOPs" if row else ""
        lines.append((name + share, [cell(row, dense)] + [""] * (len(args.ratio) - 1)))
    write(args, dense["n"], lines)
    return 0


def write(args: argparse.Namespace, count: int, lines: list[tuple[str, list[str]]]) -> None:
    """The table, with the command that makes it."""
    how = "python benchmarks/retrain.py --data cifar10/val --training-data cifar10/train --work runs/retrain"
    text = [
        f"# Re-training `{args.model}`",
        "",
        f"Top-1 on {count} test images, the difference from the dense model in points with its paired 95 %",
        "interval, and for how many epochs of 48 000 training images, and how many minutes at the run's median speed,",
        "it was trained, on two cores that others share: the same work took up to half as long again. More than an",
        "hour is of cores without AVX-512. At 0.6 all reduce after blocks 2, 4, 6 and 8. The last three rows have no",
        "ratio. What has a dash was not run.",
        "Made by",
        f"`{how}`.",
        "",
        "| | " + " | ".join(f"{ratio:g}" for ratio in args.ratio) + " |",
        "|---" * (1 + len(args.ratio)) + "|",
        *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines),
    ]
    (DOCS / args.model).mkdir(parents=True, exist_ok=True)
    (DOCS / args.model / "retrain.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
