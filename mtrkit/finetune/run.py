"""The state of a run, and its loop: batches in, weights out, with Hugging Face Accelerate towards the machine."""

import json
import math
import pickle
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtrkit.dyvm import DyVMTraining, measure_scan_share
from mtrkit.errors import CheckpointError, InputError
from mtrkit.finetune.chance import seeded
from mtrkit.finetune.curve import Curve
from mtrkit.finetune.draws import BatchPlan, Draws, check_cut
from mtrkit.finetune.drive import prepare_with, spread_like, whole
from mtrkit.finetune.folder import RunFolder, step_of
from mtrkit.finetune.identity import identity_of
from mtrkit.finetune.mixing import mixing
from mtrkit.finetune.modes import evaluating
from mtrkit.finetune.objective import Objective
from mtrkit.finetune.recipe import Recipe
from mtrkit.finetune.result import Result
from mtrkit.measure import Accuracy, ImageSet, Preprocess, batches, describe_machine, predict, score
from mtrkit.measure.processes import Processes
from mtrkit.measure.progress import progress
from mtrkit.models import VisionMamba, checkpoint_metadata, write_metadata
from mtrkit.patch import DyVMCheckpoint, trained_parts

_LOOKED_AT, _TOGETHER = 256, 32  # images that the choices are counted on, and how many at once
_UNREADABLE = (OSError, SafetensorError, pickle.UnpicklingError)
_UNWRITABLE = (OSError, SafetensorError, RuntimeError)  # torch makes a full disk a RuntimeError


class Run:
    """The state of a run: weights, their average, optimiser and step."""

    def __init__(
        self,
        model: nn.Module,
        draws: Draws,
        folder: RunFolder,
        recipe: Recipe,
        objective: Objective,
        accelerator: Accelerator,
        preprocess: Preprocess,
    ) -> None:
        self.draws, self.folder, self.recipe, self.objective = draws, folder, recipe, objective
        self.accelerator, self.bare, self.preprocess = accelerator, model, preprocess
        self.cut = check_cut(recipe, accelerator.num_processes)
        self.step, self.steps = 0, max(1, round(recipe.epochs * draws.steps_per_epoch))
        self.skipped, self.recent = 0, []  # type: int, list[float]
        self.classes = len(draws.images.classes)
        self.mix = mixing(recipe, self.classes)
        self.identity = identity_of(self.bare, draws, recipe, objective, preprocess)
        self.model, self.optimizer, self.ema = prepare_with(accelerator, model, recipe)
        accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside model, optimiser and random states."""
        average = None if self.ema is None else whole(self.ema.module.state_dict())
        return {"step": self.step, "skipped": self.skipped, "recent": self.recent, "ema": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.step, self.skipped, self.recent = state["step"], state["skipped"], state["recent"]
        if self.ema is not None:
            average = self.ema.module
            average.load_state_dict(spread_like(state["ema"], average.state_dict()))

    def begin(self, more: dict[str, Any]) -> None:
        """Claim the folder, and take over its last checkpoint if there is one."""
        accelerator = self.accelerator
        with accelerator.main_process_first():
            self.folder.claim(self.identity | more, describe_machine(accelerator.device))
        found = self.folder.checkpoints()
        last = step_of(found[-1]) if found else 0
        if accelerator.gather(torch.tensor([last], device=accelerator.device)).unique().numel() > 1:
            raise InputError(
                f"not every process sees the same checkpoints in {self.folder.path}; all machines need one folder, "
                "on a file system that they share"
            )
        if not found:
            return
        try:
            accelerator.load_state(str(found[-1]))
        except (*_UNREADABLE, RuntimeError, ValueError, KeyError, EOFError) as error:
            reason = str(error).partition("\n")[0].partition(". ")[0]  # torch's goes on to advise what is not safe
            raise CheckpointError(
                f"{found[-1]} cannot be read ({reason}); delete it, and the run goes on from the one before"
            ) from error

    def through(
        self, held_out: ImageSet | None, save_every: int, workers: int, tensorboard: bool, show: bool
    ) -> Result:
        """All steps that are left, and the result."""
        began, main = time.perf_counter(), self.accelerator.is_main_process
        board = self.folder.path / "tensorboard" if tensorboard else None
        with self._writing(str(self.folder.log)):
            curve = Curve(self.folder.log, self.step, board) if main else None
        accuracy = None
        with progress(show and main) as bar:
            task = bar.add_task("training", total=self.steps, completed=self.step)
            parts = self._parts(workers)
            while self.step < self.steps:
                row = self._advance(parts)
                over = self.step % self.draws.steps_per_epoch == 0 or self.step == self.steps
                if over and held_out is not None:
                    accuracy = self._accuracy(held_out)
                    row["held_out"] = accuracy.share
                if curve is not None:
                    with self._writing(str(self.folder.log)):
                        curve.add(row)
                bar.update(task, completed=self.step, description=_describe(row))
                if self.step % save_every == 0 or self.step == self.steps:
                    self._save()
        return self._finish(curve, held_out, accuracy, time.perf_counter() - began)

    def _advance(self, parts: Iterator[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
        """One step of the optimiser; returns its row of the curve."""
        began, size = time.perf_counter(), self.recipe.batch_size
        lr = self.recipe.rate(self.step, self.steps, self.draws.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        loss, right, norm = self._gradients(parts)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.bare, step=self.step)
        self.recent = [*self.recent[-99:], loss]
        row = {"step": self.step, "epoch": self.step / self.draws.steps_per_epoch, "loss": loss, "lr": lr}
        speed = size / (time.perf_counter() - began)
        return row | {"accuracy": right / size, "grad_norm": norm, "images_per_s": speed, "held_out": None}

    def _gradients(self, parts: Iterator[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float, float]:
        """Those of the whole batch: its loss, right answers, and the norm of the gradient before clipping."""
        accelerator = self.accelerator
        fine = torch.float32 if accelerator.device.type == "mps" else torch.float64  # the former has nothing finer
        totals = torch.zeros(3, device=accelerator.device, dtype=fine)
        for part in range(self.recipe.accumulate):
            last = part == self.recipe.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                totals += self._backward(*next(parts))
        loss, right, skipped = accelerator.reduce(totals, "sum").tolist()
        loss /= self.cut
        if not math.isfinite(loss):
            raise self._broken(f"the loss of step {self.step + 1} is {loss}")
        norm = self._clip()
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler leaves such a step out
            raise self._broken(f"the gradient of step {self.step + 1} has norm {norm}")
        self.skipped += int(skipped)
        return loss, right, norm

    def _backward(self, images: Tensor, targets: Tensor, skipped: Tensor) -> Tensor:
        """Add a part's gradients; returns its loss, right answers and skipped images."""
        accelerator = self.accelerator
        with accelerator.autocast():
            loss, logits = self.objective(self.model, self.bare, images, targets)
        # Processes average their gradients, and the parts of one add theirs up.
        accelerator.backward(loss / self.recipe.accumulate)
        right = (logits.argmax(-1) == targets.argmax(-1)).sum()
        return torch.stack([loss.detach(), right.to(loss.dtype), skipped.to(loss)])

    def _clip(self) -> float:
        """Clip the gradients if asked; returns their norm before that."""
        limit = math.inf if self.recipe.clip_norm is None else self.recipe.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _parts(self, workers: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, targets and skipped images of every part of this process, to the end of the run."""
        accelerator, device = self.accelerator, self.accelerator.device
        first = accelerator.process_index * self.recipe.accumulate
        parts = range(first, first + self.recipe.accumulate)
        plan = BatchPlan(self.draws, range(self.step, self.steps), parts, self.cut)
        loader = DataLoader(
            self.draws,
            batch_sampler=plan,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        for number, (images, labels, skipped) in enumerate(_without_traceback(loader)):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            step, part = plan.steps[number // len(parts)], parts[number % len(parts)]
            with seeded(self.recipe.seed, step, 1):  # the same for all parts, which are mixed as one batch
                mixed = self.mix(images, labels)
            with seeded(self.recipe.seed, step, 2, part):  # what the model draws
                yield *mixed, skipped.sum()

    def _accuracy(self, images: ImageSet) -> Accuracy:
        """Of the weights that would be saved now; each process takes its share of the images."""
        processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        with self._averaged(), evaluating(self.bare):
            return score(predict(self.bare, images, self.preprocess, processes=processes), images)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its average in the place of its weights: spread by FSDP, the average alone cannot run."""
        if self.ema is None:
            yield
            return
        own = {name: value.clone() for name, value in self.bare.state_dict().items()}
        self.bare.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            self.bare.load_state_dict(own)

    def _save(self) -> None:
        """Write a checkpoint; every process takes part."""
        accelerator, folder = self.accelerator, self.folder
        with self._writing(f"the checkpoint of step {self.step}"):
            if accelerator.is_main_process:
                folder.clear(self.step)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(folder.part(self.step)))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                folder.keep(self.step)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Say what could not be written, and what is left."""
        try:
            yield
        except _UNWRITABLE as error:
            raise CheckpointError(
                f"{what} cannot be written ({error}); {self.folder.last_good()}. Make room and make the same call again"
            ) from error

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{what}; {self.folder.last_good()}. Try a lower lr, or clip_norm=1")

    def _finish(self, curve: Curve | None, held_out: ImageSet | None, accuracy: Accuracy | None, took: float) -> Result:
        if self.ema is not None:
            self.bare.load_state_dict(self.ema.module.state_dict())
        if held_out is not None and accuracy is None:
            accuracy = self._accuracy(held_out)
        weights = self.accelerator.get_state_dict(self.model)
        if curve is not None:
            with self._writing(str(self.folder.log)):
                curve.close()
            self._measure_share(held_out or self.draws.images)
            about = self.identity | {"held-out accuracy": None if accuracy is None else str(accuracy)}
            self._write({_own_name(name): _alone(value) for name, value in weights.items()}, about)
        self.accelerator.wait_for_everyone()
        self.bare.eval()
        loss = sum(self.recent) / len(self.recent) if self.recent else math.nan
        return Result(self.step, loss, accuracy, self.skipped, self.folder.weights, took)

    def _measure_share(self, images: ImageSet) -> None:
        """Measure how many scans run with these weights, if the model chooses them: FLOPs are counted by it."""
        parts = trained_parts(self.bare)
        if parts is None or parts.block_target is None:
            return
        parts.scan_share = None  # other weights, other choices
        device = next(parts.parameters()).device
        found = batches(images.spread(_LOOKED_AT), self.preprocess, _TOGETHER)
        with evaluating(self.bare), suppress(InputError):  # an unreadable image leaves it unmeasured
            measure_scan_share(self.bare, (batch.to(device) for batch in found))

    def _write(self, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
        """The model's weights, with what they are of, and beside them what DyVM adds to a model."""
        model: nn.Module = self.bare
        if isinstance(self.bare, DyVMTraining):
            model = self.bare.model
            weights = {name.removeprefix("model."): weights[name] for name in weights if name.startswith("model.")}
        parts = trained_parts(model)
        if parts is not None:
            with self._writing(str(self.folder.added)):
                DyVMCheckpoint.of(model, parts).save(self.folder.added)
        with self._writing(str(self.folder.weights)):
            save_file(weights, self.folder.weights, {"about": json.dumps(about, default=str)})
            if isinstance(model, VisionMamba):
                write_metadata(self.folder.weights, checkpoint_metadata(model))


def _alone(value: Tensor) -> Tensor:
    """A copy on the CPU that shares nothing: a file of safetensors cannot hold tensors that do."""
    return value.detach().cpu().contiguous().clone()


def _without_traceback(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; an image that cannot be read is named without the history of the process that read it."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).rpartition(f"{InputError.__name__}: ")[2].strip()) from None


def _own_name(name: str) -> str:
    """A weight's name in the model, without what torch.compile puts in front."""
    return name.replace("_orig_mod.", "")


def _describe(row: dict[str, Any]) -> str:
    return f"loss {row['loss']:.3f}, accuracy {100 * row['accuracy']:.1f} %, {row['images_per_s']:.0f} images/s"
