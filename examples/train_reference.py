"""Train a small Vision Mamba from scratch on real images, as the reference models of mtrkit were trained.

    python examples/train_reference.py vim_micro_patch4_stride2_32 --data cifar10 --out runs/micro

DATA is an ImageFolder with train/ and val/. Most epochs run on coarse patches (a fourth of the tokens and of the
time), the last ones on the model's own; positions are interpolated in between. The learning rate is constant until it
falls to zero over the last epochs, so a run that is still before the fall can be made longer, and a finished one can
be the start of another (``--initial-checkpoint``), as can one of a deeper model, or of one whose class token is
elsewhere or which halves the sum of its directions where this does not. With ``--teacher`` half of the lesson is what
another model, or an exported program such as that of train_teacher.py, says to the same images. The same command again
goes on where an interrupted run stopped. Evenly spaced training images are held out: progress is measured on
them, and so can a reduction be tuned (``mtrkit eval --data cifar10/train --limit 2000``); ``val`` is used once, at
the end. Writes weights (safetensors), a model card and a log.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, random_seed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

import mtrkit
from mtrkit.finetune.draws import Draws
from mtrkit.finetune.recipe import Recipe
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
from mtrkit.models.positions import class_index, insert_at, without


def parse() -> argparse.Namespace:
    """The recipe; its defaults are those of the published reference models."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="a name in mtrkit.models.list_models()")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, card, log and checkpoint")
    parser.add_argument("--initial-checkpoint", type=Path, help="weights to begin with; default: random ones")
    parser.add_argument(
        "--teacher", type=Path, help="exported program or weights of this script, to learn from as well"
    )
    parser.add_argument("--crop-scale", type=float, default=0.6, help="least share of an image in a random crop")
    parser.add_argument("--coarse-epochs", type=float, default=12, help="epochs on coarse patches")
    parser.add_argument("--coarse-stride", type=int, default=4, help="step between them, in pixels")
    parser.add_argument("--fine-epochs", type=float, default=2, help="epochs on the model's own patches")
    parser.add_argument("--decay-epochs", type=float, default=4, help="last epochs, over which the rate falls to zero")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--opt", default="muon", help="an optimiser of timm")
    parser.add_argument("--lr", type=float, default=7e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--holdout", type=int, default=2000, help="training images that are not trained on")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    return parser.parse_args()


class Batches:
    """Augmented training batches; each is a function of the seed and its number, so a run can be continued."""

    def __init__(self, args: argparse.Namespace, cfg: dict) -> None:
        images = image_folder(args.data / "train")
        self.held_out = images.spread(args.holdout)
        augment = create_transform(
            cfg["input_size"],
            is_training=True,
            scale=(args.crop_scale, 1.0),
            ratio=(0.8, 1.25),
            color_jitter=None,
            interpolation="bicubic",
            mean=cfg["mean"],
            std=cfg["std"],
        )
        recipe = Recipe(batch_size=args.batch_size, repeats=1, seed=args.seed)
        self.draws = Draws(images.without(self.held_out), augment, recipe)
        self.per_epoch = self.draws.steps_per_epoch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,) of one step."""
        images, labels, _ = default_collate([self.draws[draw] for draw in self.draws.batch(step, 0, 1)])
        return images, labels


def relative(file: Path, name: str) -> VisionMamba:
    """The model that a file of this script says its weights are of, or ``name`` where it does not say it."""
    about = "{}"
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            about = (opened.metadata() or {}).get("about", about)
    found = mtrkit.create_model(json.loads(about).get("architecture", name), file)
    assert isinstance(found, VisionMamba)
    return found


def teacher(file: Path, name: str) -> nn.Module:
    """From images to logits: an exported program, or a model of this script."""
    return relative(file, name).eval() if file.suffix == ".safetensors" else torch.export.load(file).module()


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
    """The relative's position table, its class token's row where ``model`` has it, or away where it has none."""
    table, index = source.pos_embed.detach(), source.class_index
    if index is None:
        return table
    patches = without(table, index)
    place = class_index(model.class_token, patches.shape[1])
    return patches if place is None else insert_at(patches, table[:, index : index + 1], place)


class Run:
    """The state of one training: model, averaged model and optimiser, on disk every now and then."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.step = args, 0
        self.state: dict | None = None
        self.file = args.out / "last.pt"
        args.out.mkdir(parents=True, exist_ok=True)
        self.batches = Batches(args, mtrkit.create_model(args.model).pretrained_cfg)
        self.teacher = None if args.teacher is None else teacher(args.teacher, args.model).to(args.device)
        self.coarse_steps = round(args.coarse_epochs * self.batches.per_epoch)
        self.steps = self.coarse_steps + round(args.fine_epochs * self.batches.per_epoch)
        if self.file.exists():
            self.state = torch.load(self.file, weights_only=True)
            self.step = self.state["step"]
        self._build(self.step < self.coarse_steps)

    def _build(self, coarse: bool) -> None:
        """Models and optimiser for coarse or fine patches, with the weights reached so far."""
        args, self.coarse = self.args, coarse
        random_seed(args.seed)
        stride = {"stride": args.coarse_stride} if coarse else {}
        model = mtrkit.create_model(args.model, drop_path_rate=args.drop_path, **stride)
        assert isinstance(model, VisionMamba)
        if self.state is None and args.initial_checkpoint is not None:
            weights = inherited(relative(args.initial_checkpoint, args.model), model)
            model.load_state_dict(model.adapt_state_dict(weights))
        self.model = model.to(args.device)
        self.ema = ModelEmaV3(self.model, decay=args.ema, use_warmup=True)
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=args.opt,
            lr=args.lr,
            weight_decay=args.weight_decay,
            fallback_no_weight_decay=True,
            fallback_list=("head",),
        )
        if self.state is not None:
            for target, name in ((self.model, "model"), (self.ema.module, "ema")):
                target.load_state_dict(target.adapt_state_dict(self.state[name]))
            if self.state["coarse"] == coarse:
                self.optimizer.load_state_dict(self.state["optimizer"])

    def save(self) -> None:
        """Write everything that going on needs; an interruption leaves the last file whole."""
        self.state = {
            "step": self.step,
            "coarse": self.coarse,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        part = self.file.with_suffix(".part")
        torch.save(self.state, part)
        os.replace(part, self.file)

    def advance(self) -> float:
        """One step; returns the loss."""
        if self.coarse and self.step >= self.coarse_steps:
            self.save()
            self._build(coarse=False)
        self.model.train()
        images, labels = (tensor.to(self.args.device) for tensor in self.batches(self.step))
        self._set_rate()
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.dtype == "bfloat16"):
            logits = self.model(images)
            lesson = self._lesson(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        if lesson is not None:
            loss = (loss + F.cross_entropy(logits.float(), lesson)) / 2
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model, step=self.step)
        return loss.item()

    @torch.no_grad()
    def _lesson(self, images: Tensor) -> Tensor | None:
        """What the teacher takes the images for, as probabilities (B, classes)."""
        return None if self.teacher is None else self.teacher(images).float().softmax(dim=1)

    def _set_rate(self) -> None:
        """Warm up, stay, and fall linearly."""
        falling = self.args.decay_epochs * self.batches.per_epoch
        warm, left = (self.step + 1) / 100, (self.steps - self.step) / max(1, falling)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * min(1.0, warm, left)

    def accuracy(self, images: ImageSet) -> Accuracy:
        """Of the averaged weights."""
        model = self.ema.module.eval()
        return score(predict(model, images, preprocess_for(model.pretrained_cfg)), images)

    def finish(self) -> None:
        """Look at ``val``, once, and write the weights and the card."""
        accuracy = self.accuracy(image_folder(self.args.data / "val"))
        recipe = {name: value.name if isinstance(value, Path) else value for name, value in vars(self.args).items()}
        for machine_bound in ("data", "out", "save_every"):
            recipe.pop(machine_bound)
        about = {
            "architecture": self.args.model,
            "training": "examples/train_reference.py, from scratch on the 50 000 CIFAR-10 training images",
            "recipe": recipe,
            "val top-1": str(accuracy),
            "n": accuracy.n,
            "machine": describe_machine(torch.device(self.args.device)),
            "license": "Apache-2.0 for these weights; the images are not included",
        }
        weights = {name: value.contiguous() for name, value in self.ema.module.state_dict().items()}
        file = self.args.out / f"{self.args.model}.safetensors"
        save_file(weights, file, {"about": json.dumps(about)})
        write_metadata(file, checkpoint_metadata(self.model))
        (self.args.out / "card.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        print(f"{self.args.model}: val top-1 {accuracy}, n = {accuracy.n}")


def main() -> None:
    """Train to the end, or go on with it."""
    run = Run(args := parse())
    keep_freed_memory()
    columns = (*Progress.get_default_columns()[:2], TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns) as bar, (args.out / "log.jsonl").open("a") as log:
        task = bar.add_task(args.model, total=run.steps, completed=run.step, now="")
        began, mean = time.perf_counter(), None
        while run.step < run.steps:
            loss = run.advance()
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            bar.update(task, completed=run.step, now=f"loss {mean:.3f}")
            if run.step % args.save_every == 0 or run.step == run.steps:
                run.save()
            if run.step % run.batches.per_epoch in (0, run.batches.per_epoch // 2) or run.step == run.steps:
                seconds, began = time.perf_counter() - began, time.perf_counter()
                line = {
                    "step": run.step,
                    "loss": mean,
                    "held_out": run.accuracy(run.batches.held_out).share,
                    "seconds": seconds,
                }
                print(json.dumps(line), file=log, flush=True)
    run.finish()


if __name__ == "__main__":
    main()
