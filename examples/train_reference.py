"""Train a small Vision Mamba from scratch on real images, as the reference models of mtrkit were trained.

    python examples/train_reference.py vim_micro_patch4_stride2_32 --data cifar10 --out runs/micro

DATA is an ImageFolder with train/ and val/. Most epochs run on coarse patches (a fourth of the tokens and of the
time), the last ones on the model's own; positions are interpolated in between. Each of the two is one call of
``mtrkit.finetune.retrain`` with a folder of its own under OUT. The learning rate is constant until it falls to zero
over the last epochs. A finished run can be the start of another (``--initial-checkpoint``), as can one of a deeper
model, or of one whose class token is elsewhere or which halves the sum of its directions if this does not. With
``--teacher`` half of the lesson is what another model, or an exported program such as that of train_teacher.py, says
to the same images. The same command again goes on where an interrupted run stopped, and ``accelerate launch`` spreads
it over several processes. Evenly spaced training images are held out: progress is measured on them, and so can a
reduction be tuned (``mtrkit eval --data cifar10/train --limit 2000``); ``val`` is used once, at the end. Writes
weights (safetensors) and a model card.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from timm.utils import random_seed
from torch import Tensor, nn

import mtrkit
from mtrkit.finetune import CrossEntropy, Recipe, retrain
from mtrkit.measure import (
    Accuracy,
    ImageSet,
    describe_machine,
    image_folder,
    keep_freed_memory,
    predict,
    preprocess_for,
    score,
)
from mtrkit.models import VisionMamba, checkpoint_metadata, write_metadata
from mtrkit.models.positions import class_index, insert_at
from mtrkit.ops import columns_without


def parse() -> argparse.Namespace:
    """The recipe; its defaults are those of the published reference models."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="a name in mtrkit.models.list_models()")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, card, logs and checkpoints")
    parser.add_argument("--initial-checkpoint", type=Path, help="weights to begin with; default: random ones")
    parser.add_argument(
        "--teacher", type=Path, help="exported program or weights of this script, to learn from as well"
    )
    parser.add_argument("--crop-scale", type=float, default=0.6, help="least share of an image in a random crop")
    parser.add_argument("--coarse-epochs", type=float, default=12, help="epochs on coarse patches")
    parser.add_argument("--coarse-stride", type=int, default=4, help="step between them, in pixels")
    parser.add_argument("--fine-epochs", type=float, default=2, help="epochs on the model's own patches")
    parser.add_argument("--decay-epochs", type=float, default=4, help="last epochs, over which the rate falls to zero")
    parser.add_argument("--warmup-epochs", type=float, default=0.25, help="first ones, over which the rate rises")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--opt", default="muon", help="an optimiser of timm")
    parser.add_argument("--lr", type=float, default=7e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--holdout", type=int, default=2000, help="training images that are not trained on")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "no"], help="of autocast")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    return parser.parse_args()


class Stage(NamedTuple):
    """One call of ``retrain``: its folder, what its patches have of their own, and its recipe."""

    name: str
    patches: dict[str, int]
    recipe: Recipe


def stages(args: argparse.Namespace) -> list[Stage]:
    """Coarse patches, then the model's own; the rate goes on from one to the other where it was."""
    falling = min(args.decay_epochs, args.fine_epochs)
    edge = args.lr * falling / args.decay_epochs if args.decay_epochs else args.lr
    found, warm = [], args.warmup_epochs
    if args.coarse_epochs:
        rate = {"lr": args.lr, "min_lr": edge, "decay_epochs": args.decay_epochs - falling, "warmup_epochs": warm}
        found.append(Stage("coarse", {"stride": args.coarse_stride}, plain_recipe(args, args.coarse_epochs, **rate)))
        warm = 0.0
    rate = {"lr": edge, "min_lr": 0.0, "decay_epochs": falling, "warmup_epochs": warm}
    return [*found, Stage("fine", {}, plain_recipe(args, args.fine_epochs, **rate))]


def plain_recipe(args: argparse.Namespace, epochs: float, **more: float) -> Recipe:
    """Crops and flips, whole labels but for some smoothing."""
    augmentation = {"mixup": 0.0, "cutmix": 0.0, "auto_augment": None, "color_jitter": 0.0, "erase": 0.0, "repeats": 1}
    own = ("batch_size", "opt", "weight_decay", "crop_scale", "ema", "precision", "seed")
    given = {name: getattr(args, name) for name in own} | augmentation | more
    distill = float(args.teacher is not None)
    return Recipe(epochs=epochs, clip_norm=1.0, distill=distill, ema_warmup=args.ema is not None, **given)


def relative(file: Path, name: str) -> VisionMamba:
    """The model that a file of this script says its weights are of, or ``name`` if it does not say it."""
    about = "{}"
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            about = (opened.metadata() or {}).get("about", about)
    found = mtrkit.create_model(json.loads(about).get("architecture", name), file)
    assert isinstance(found, VisionMamba)
    return found


class Program(nn.Module):
    """An exported program as a teacher: it has no modes, so ``eval`` must not reach it."""

    def __init__(self, file: Path, device: torch.device) -> None:
        super().__init__()
        self.hidden = (torch.export.load(file).module().to(device),)
        digest = hashlib.sha256(file.read_bytes()).digest()
        self.register_buffer("digest", torch.tensor([*digest], device=device))  # by which a run knows its teacher

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits."""
        logits: Tensor = self.hidden[0](images)
        return logits


def teacher(file: Path | None, name: str) -> nn.Module | None:
    """From images to logits: an exported program, or a model of this script."""
    if file is None:
        return None
    return relative(file, name) if file.suffix == ".safetensors" else Program(file, Accelerator().device)


def inherited(source: VisionMamba, model: VisionMamba) -> dict[str, Tensor]:
    """Weights of a relative as ``model`` can take them: of a deeper one, blocks at even distances."""
    found = {name: value for name, value in source.state_dict().items() if not name.startswith("layers.")}
    found["pos_embed"] = positions(source, model)
    if model.class_token == "none":
        found.pop("cls_token", None)
    step = (len(source.layers) - 1) / max(1, len(model.layers) - 1)
    for i, block in enumerate(model.layers):
        taken = source.layers[round(i * step)]
        found |= {f"layers.{i}.{name}": value for name, value in taken.state_dict().items()}
        if taken.mixer.halve and not block.mixer.halve:
            found[f"layers.{i}.mixer.out_proj.weight"] = taken.mixer.out_proj.weight.detach() / 2
    return found


def positions(source: VisionMamba, model: VisionMamba) -> Tensor:
    """The relative's position table, its class token's row at its place in ``model``, or left out if that has none."""
    table, index = source.pos_embed.detach(), source.class_index
    if index is None:
        return table
    patches = columns_without(table, (index,))
    place = class_index(model.class_token, patches.shape[1])
    return patches if place is None else insert_at(patches, table[:, index : index + 1], place)


def begin(args: argparse.Namespace, stage: Stage, before: VisionMamba | None) -> VisionMamba:
    """The model of a stage, with the weights reached so far."""
    random_seed(args.seed)
    model = mtrkit.create_model(args.model, drop_path_rate=args.drop_path, **stage.patches)
    assert isinstance(model, VisionMamba)
    weights = None if before is None else before.state_dict()
    if before is None and args.initial_checkpoint is not None:
        weights = inherited(relative(args.initial_checkpoint, args.model), model)
    if weights is not None:
        model.load_state_dict(model.adapt_state_dict(weights))
    return model


def train(args: argparse.Namespace, images: ImageSet, held_out: ImageSet) -> VisionMamba:
    """Take the model through its stages."""
    model: VisionMamba | None = None
    for stage in stages(args):
        model = begin(args, stage, model)
        objective = CrossEntropy(stage.recipe, teacher(args.teacher, args.model))
        how = {"save_every": args.save_every, "workers": args.workers, "objective": objective}
        retrain(model, images, args.out / stage.name, stage.recipe, held_out=held_out, **how)
    assert model is not None
    return model


def finish(args: argparse.Namespace, model: VisionMamba) -> Accuracy:
    """Look at ``val``, once, and write the weights and the card."""
    images = image_folder(args.data / "val")
    accuracy = score(predict(model, images, preprocess_for(model.pretrained_cfg)), images)
    recipe = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
    for machine_bound in ("data", "out", "save_every", "workers"):
        recipe.pop(machine_bound)
    about = {
        "architecture": args.model,
        "training": "examples/train_reference.py, from scratch on the 50 000 CIFAR-10 training images",
        "recipe": recipe,
        "val top-1": str(accuracy),
        "n": accuracy.n,
        "machine": describe_machine(next(model.parameters()).device),
        "license": "Apache-2.0 for these weights; the images are not included",
    }
    file = args.out / f"{args.model}.safetensors"
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, file, {"about": json.dumps(about)}
    )
    write_metadata(file, checkpoint_metadata(model))
    (args.out / "card.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return accuracy


def main() -> None:
    """Train to the end, or go on with it."""
    args = parse()
    keep_freed_memory()
    images = image_folder(args.data / "train")
    held_out = images.spread(args.holdout)
    model = train(args, images.without(held_out), held_out)
    if Accelerator().is_main_process:
        accuracy = finish(args, model)
        print(f"{args.model}: val top-1 {accuracy}, n = {accuracy.n}")


if __name__ == "__main__":
    main()
