"""Train a segmentor, reduced or not, and go on with a training that was interrupted."""

import argparse
import math
import os
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from scenes import NOT_LABELLED, Normalise, Scenes, resized, scaled
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from upernet import Segmentor

from mtrkit.dyvm import DyVMTraining, ratio_terms
from mtrkit.errors import CheckpointError, InputError
from mtrkit.measure.candidates import Candidate
from mtrkit.measure.progress import progress

WARM_UP = 1500  # steps, or a tenth of all if that is less
DECAY, AUXILIARY = 0.01, 0.4
RATIOS = 20.0  # weight of either of DyVM's two terms in its segmentation
_SEEDS = 2**32  # room for a sample's number under each seed


class Crops(Dataset):
    """Endless training samples; each depends on the seed and its number alone, so a run can go on anywhere.

    Every epoch takes each image once, at random: its short side 0.5 to 2 times ``size``, a square of ``size`` cut out
    (again, up to ten times, if one class has three quarters of it), flipped or not, filled up if it is too small.

    Args:
        scenes: What to cut from.
        size: Pixels a side.
        normalise: Of the pixels.
        seed: Of all chances.
    """

    def __init__(self, scenes: Scenes, size: int, normalise: Normalise, seed: int) -> None:
        self.scenes, self.size, self.normalise, self.seed = scenes, size, normalise, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Normalised pixels (3, size, size) and classes (size, size)."""
        epoch, place = divmod(number, len(self.scenes))
        chance = torch.Generator().manual_seed(self.seed * _SEEDS + number)
        pixels, labels = self.scenes[order(self.seed * _SEEDS + epoch, len(self.scenes))[place]]
        short = int(self.size * (0.5 + 1.5 * torch.rand((), generator=chance).item()) + 0.5)
        size = scaled(*labels.shape, short)
        pixels = self.normalise(resized(pixels, size))
        labels = F.interpolate(labels[None, None].float(), size=size, mode="nearest")[0, 0].long()
        rows, columns = self._window(labels, chance)
        pixels, labels = pixels[:, rows, columns], labels[rows, columns]
        if torch.rand((), generator=chance) < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        room = (0, self.size - labels.shape[1], 0, self.size - labels.shape[0])
        return F.pad(pixels, room), F.pad(labels, room, value=NOT_LABELLED)

    def _window(self, labels: Tensor, chance: torch.Generator) -> tuple[slice, slice]:
        """Which rows and columns to cut out."""
        for _ in range(10):
            starts = [int(torch.randint(max(side - self.size, 0) + 1, (), generator=chance)) for side in labels.shape]
            rows, columns = (slice(start, start + self.size) for start in starts)
            counts = labels[rows, columns].flatten().bincount(minlength=NOT_LABELLED + 1)[:NOT_LABELLED]
            if counts.max() < 0.75 * counts.sum():
                break
        return rows, columns


@lru_cache(maxsize=2)
def order(seed: int, count: int) -> list[int]:
    """The images of an epoch, shuffled."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def segmentor_of(model: nn.Module) -> Segmentor:
    """The segmentor itself, which DyVM's training has inside."""
    found = model.model if isinstance(model, DyVMTraining) else model
    assert isinstance(found, Segmentor)
    return found


def groups(model: nn.Module) -> list[dict]:
    """The parameters, without decay for vectors and what the backbone names."""
    backbone = segmentor_of(model).backbone.model
    spared = {id(p) for name, p in backbone.named_parameters() if name in backbone.no_weight_decay()}
    free = [p for p in model.parameters() if p.ndim < 2 or id(p) in spared]
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in spared]
    return [{"params": decayed, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}]


def rate(step: int, steps: int) -> float:
    """What the learning rate is multiplied with: up over the first steps, and down to 0 at the last."""
    return min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 10))) * (1 - step / steps)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, lr: float) -> float:
    """One step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    main, auxiliary = (
        F.cross_entropy(logits, labels, ignore_index=NOT_LABELLED, reduction="sum") / labels.numel()
        for logits in model(images)
    )
    loss = main + AUXILIARY * auxiliary
    if isinstance(model, DyVMTraining):
        terms = ratio_terms(model.outputs, token_weight=RATIOS, block_weight=RATIOS)
        loss = loss + torch.stack(list(terms.values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train(args: argparse.Namespace, candidate: Candidate, file: Path) -> None:
    """Train in place to the last step, from where the checkpoint in ``file`` is."""
    model = candidate.model.train()
    scenes = Scenes(args.data, "training", args.classes)
    optimizer = torch.optim.AdamW(groups(model), lr=args.lr)
    setting = training_setting(args, candidate, scenes)
    done = resume(file, setting, model, optimizer)
    crops = Crops(scenes, args.size, Normalise.of(segmentor_of(model)), args.seed)
    numbers = range(done * args.batch_size, args.train * args.batch_size)
    loader = DataLoader(crops, args.batch_size, sampler=numbers, num_workers=args.workers)
    with progress() as bar:
        task = bar.add_task(f"training {candidate.name}", total=args.train, completed=done)
        for step, batch in enumerate(loader, done):
            images, labels = (part.to(args.device) for part in batch)
            loss = advance(model, optimizer, images, labels, args.lr * rate(step, args.train))
            if not math.isfinite(loss):
                raise CheckpointError(
                    f"the loss of step {step + 1} is not a number; lower --lr. {file} stays as it was"
                )
            bar.update(task, completed=step + 1, description=f"training {candidate.name}, loss {loss:.3f}")
            if (step + 1) % args.save_every == 0 or step + 1 == args.train:
                save(file, {"step": step + 1, "setting": setting, **state_of(model)}, optimizer)
    if isinstance(model, DyVMTraining):
        model.checkpoint().save(file.with_suffix(".safetensors"))


def state_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The segmentor's weights, and what DyVM trains beside them."""
    added = {"added": model.parts.state_dict()} if isinstance(model, DyVMTraining) else {}
    return {"state_dict": segmentor_of(model).state_dict(), **added}


def training_setting(args: argparse.Namespace, candidate: Candidate, scenes: Scenes) -> dict[str, str]:
    """What decides the result of a training; read back it must be the same."""
    names = ("model", "checkpoint", "init", "classes", "size", "blocks", "train", "batch_size", "lr", "seed")
    reduction = {"method": candidate.method, "ratio": candidate.ratio}
    reduction |= {"options": candidate.info.options, "layers": candidate.info.layers} if candidate.info else {}
    given = {name: getattr(args, name) for name in names} | reduction | {"data": scenes.digest}
    return {name: str(value) for name, value in given.items()}


def resume(file: Path, setting: dict[str, str], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what was reached, and return the number of steps done."""
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    before = state["setting"]
    changed = [
        f"{k}: {before.get(k)} → {setting.get(k)}" for k in {**before, **setting} if before.get(k) != setting.get(k)
    ]
    if changed:
        raise InputError(f"{file} is of another training ({', '.join(changed)}); give another --out, or remove it")
    segmentor_of(model).load_state_dict(state["state_dict"])
    if isinstance(model, DyVMTraining):
        model.parts.load_state_dict(state["added"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save(file: Path, state: dict, optimizer: torch.optim.Optimizer) -> None:
    """Write it whole, then put it in the place of the one before."""
    part = file.with_suffix(".part")
    with part.open("wb") as stream:
        torch.save(state | {"optimizer": optimizer.state_dict()}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)
