"""Train a small convolutional network, for a Vision Mamba to learn from (``train_reference.py --teacher``).

    python examples/train_teacher.py --data cifar10 --out runs/teacher

On few images a convolutional network learns several times faster than a Mamba, and its answers to the augmented
images are a better lesson than the labels alone (DeiT, Touvron et al. 2021, section 3). It sees the same images and
the same ones are held out; ``mtrkit.finetune.retrain`` trains any model from images to logits. Writes an exported
program beside the run's own folder; any other exported program from (B, 3, H, W) to (B, classes) may teach in its
place.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import random_seed
from torch import nn
from train_reference import plain_recipe

import mtrkit
from mtrkit.finetune import retrain
from mtrkit.measure import image_folder, keep_freed_memory


def parse() -> argparse.Namespace:
    """The recipe; its defaults are those of the published teacher."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the program and the run")
    parser.add_argument("--student", default="vim_micro_patch4_stride2_32", help="whose image size and normalisation")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 256], help="of the stages")
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--crop-scale", type=float, default=0.6, help="least share of an image in a random crop")
    parser.add_argument("--lr", type=float, default=5e-3, help="of Muon; falls linearly to zero")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--holdout", type=int, default=2000, help="training images that are not trained on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.set_defaults(opt="muon", precision="bf16", ema=None, teacher=None)
    return parser.parse_args()


class ConvNet(nn.Sequential):
    """Layers, and as ``pretrained_cfg`` the size and normalisation of the images that they take."""

    pretrained_cfg: dict[str, Any]


def convnet(widths: list[int], cfg: dict[str, Any]) -> ConvNet:
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
    model = ConvNet(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    model.add_module("head", nn.Linear(before, cfg["num_classes"]))
    model.pretrained_cfg = cfg
    return model.to(memory_format=torch.channels_last)


def main() -> None:
    """Train, look at the held-out images, export."""
    args = parse()
    keep_freed_memory()
    cfg = mtrkit.create_model(args.student).pretrained_cfg
    images = image_folder(args.data / "train")
    held_out = images.spread(args.holdout)
    random_seed(args.seed)
    model = convnet(args.widths, cfg)
    rate = {"lr": args.lr, "min_lr": 0.0, "warmup_epochs": 0.25, "decay_epochs": args.epochs}
    recipe = plain_recipe(args, args.epochs, **rate)
    out = args.out / "run"
    result = retrain(model, images.without(held_out), out, recipe, held_out=held_out, workers=args.workers)
    if Accelerator().is_main_process:
        example = torch.randn(2, *cfg["input_size"])
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(model.cpu(), (example,), dynamic_shapes=(batch,), strict=False)
        torch.export.save(program, args.out / "teacher.pt2")
        print(f"teacher: held-out top-1 {result.accuracy}, n = {args.holdout}")


if __name__ == "__main__":
    main()
