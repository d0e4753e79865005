"""Train a small convolutional network, for a Vision Mamba to learn from (``train_reference.py --teacher``).

    python examples/train_teacher.py --data cifar10 --out runs/teacher

On few images a convolutional network learns several times faster than a Mamba, and its answers to the augmented
images are a better lesson than the labels alone (DeiT, Touvron et al. 2021, section 3). It sees the same images and
the same ones are held out. Writes an exported program and a log; any other exported program from (B, 3, H, W) to
(B, classes) may teach in its place.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.progress import Progress
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import Tensor, nn
from torch.nn import functional as F
from train_reference import Batches

import mtrkit
from mtrkit.measure import keep_freed_memory, predict, preprocess_for, score


def parse() -> argparse.Namespace:
    """The recipe; its defaults are those of the published teacher."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the program and the log")
    parser.add_argument("--student", default="vim_micro_patch4_stride2_32", help="whose image size and normalisation")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 256], help="of the stages")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--crop-scale", type=float, default=0.6, help="least share of an image in a random crop")
    parser.add_argument("--lr", type=float, default=5e-3, help="of Muon; falls linearly to zero")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--holdout", type=int, default=2000, help="training images that are not trained on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def convnet(widths: list[int], classes: int) -> nn.Sequential:
    """Two 3×3 convolutions per stage, each stage at half the resolution of the one before."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 2), nn.GELU()]
    before = 32
    for width in widths:
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            nn.GELU(),
        ]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.GELU()]
        before = width
    head = nn.Linear(before, classes)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head).to(memory_format=torch.channels_last)


def train(args: argparse.Namespace, model: nn.Sequential, batches: Batches) -> None:
    """Update the weights of ``model`` over all epochs."""
    optimizer = create_optimizer_v2(
        model,
        opt="muon",
        lr=args.lr,
        weight_decay=args.weight_decay,
        fallback_no_weight_decay=True,
        fallback_list=("0", str(len(model) - 1)),
    )
    steps = round(args.epochs * batches.per_epoch)
    with Progress() as bar, (args.out / "log.jsonl").open("w") as log:
        task = bar.add_task("teacher", total=steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (step + 1) / 100, (steps - step) / (steps - 100))
            loss = update(model, optimizer, *batches(step))
            bar.advance(task)
            if (step + 1) % (batches.per_epoch // 2) == 0:
                print(json.dumps({"step": step + 1, "loss": loss}), file=log, flush=True)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One step; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def main() -> None:
    """Train, look at the held-out images, export."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    cfg = mtrkit.create_model(args.student).pretrained_cfg
    batches = Batches(args, cfg)
    random_seed(args.seed)
    model = convnet(args.widths, cfg["num_classes"])
    train(args, model, batches)
    model.eval()
    accuracy = score(predict(model, batches.held_out, preprocess_for(cfg)), batches.held_out)
    example = torch.randn(2, *cfg["input_size"])
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, args.out / "teacher.pt2")
    print(f"teacher: held-out top-1 {accuracy}, n = {accuracy.n}")


if __name__ == "__main__":
    main()
