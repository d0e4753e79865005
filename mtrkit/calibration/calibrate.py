"""The verb: race placements, fit the correction, and keep of both what brings the answers nearer to the dense ones."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtrkit.calibration.correction import Folds
from mtrkit.calibration.placements import Layers, placements, race, race_length
from mtrkit.calibration.samples import gather
from mtrkit.calibration.trial import Trial
from mtrkit.errors import InputError, OptionError, ScheduleError
from mtrkit.measure.processes import ONE, Processes
from mtrkit.measure.progress import progress
from mtrkit.patch import Calibration, fingerprint
from mtrkit.schedule import Placement

_CHECKED = 5  # one sample in so many tells whether the correction helps, and is used for nothing else


def calibrate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    ratio: float = 0.3,
    *,
    method: str = "runs",
    layers: Sequence[int] | Placement | None = None,
    batch_size: int = 32,
    seed: int = 0,
    show_progress: bool = True,
    processes: Processes = ONE,
    **options: object,
) -> Calibration:
    """Fit a reduction to a model by its own dense answers, without labels and without gradients.

    Two things are fitted: the blocks that reduce, by a race between placements that all remove ``ratio``; and an affine
    correction of the final features, of low rank, in closed form. Each is kept only if it brings the answers nearer to
    the dense ones. The model stays as it is.

    Args:
        model: As for :func:`apply_reduction`; a patch that it has is left out.
        images: Inputs as the model takes them, (N, C, H, W), or batches of them with or without labels, such as a
            ``DataLoader``; all are held in memory. A few hundred training images, or texts as token numbers (N, L).
        ratio: Share of the FLOPs to remove, in (0, 1).
        method: A name in :func:`list_methods`.
        layers: Where to reduce, if that is not to be fitted.
        batch_size: Images per forward pass.
        seed: Of the order of the images. The same seed gives the same calibration.
        show_progress: Whether to show a progress bar, if standard error is a terminal.
        processes: That calibrate together: each runs some of the batches, and all get the same calibration. It is that
            of one process, to the bit if the machines are alike and each process has as many threads.
        **options: Fields of the method's config.

    Returns:
        What ``apply_reduction(model, calibration=…)`` takes.

    Raises:
        InputError: Fewer than 20 images, or the model's answers are not logits.
        OptionError, UnsupportedModelError, ScheduleError: As :func:`apply_reduction` does.
    """
    if ratio == 0:
        raise OptionError("ratio=0 reduces nothing, so there is nothing to calibrate; give a ratio above 0")
    if batch_size < 1:
        raise OptionError(f"batch_size={batch_size!r} is not the number of images per pass; give 1 or more")
    if getattr(model, "num_classes", None) == 0:
        raise InputError("the model has no head, and calibrating compares logits; calibrate it with its classifier")
    samples = gather(images, seed)
    wanted = {"method": method, "ratio": ratio, "input_size": tuple(samples.shape[1:]), **options}
    with torch.no_grad(), progress(show_progress and processes.main) as bar:
        task = bar.add_task("calibrate", total=None)
        trial = Trial(model, samples, wanted, batch_size, lambda done: bar.advance(task, done), processes)
        fitted = len(samples) - len(samples) // _CHECKED
        placed = _possible(trial, layers)
        bar.update(task, total=race_length(placed, fitted) + fitted + 3 * (len(samples) - fitted))
        return _calibrate(trial, placed, fitted)


def _possible(trial: Trial, layers: Sequence[int] | Placement | None) -> list[Layers]:
    """The placements that reach the ratio; the method's own first, or the one that is asked for alone."""
    trial.apply(layers)
    if layers is not None:
        return [trial.info.layers]
    found: list[Layers] = [None]
    depth = len(trial.adapter.blocks(trial.host))
    for candidate in placements(depth, depth - 1):
        try:
            trial.apply(candidate)
        except ScheduleError:
            continue
        found.append(candidate)
    return found


def _calibrate(trial: Trial, placed: Sequence[Layers], fitted: int) -> Calibration:
    """From the samples before ``fitted``; those after it check."""
    count = len(trial.samples)

    def measure(layers: Layers, start: int, stop: int) -> Tensor:
        trial.apply(layers)
        return trial.divergence(start, stop)

    best = race(placed, fitted, measure)
    chosen = float(measure(best, fitted, count).mean())
    default = chosen if best == placed[0] else float(measure(placed[0], fitted, count).mean())
    trial.apply(placed[0] if default < chosen else best)
    chosen = min(default, chosen)
    folds = Folds()
    for reduced, dense in trial.features(0, fitted):
        folds.add(reduced, dense)
    calibration = _describe(trial, {"default": default, "placed": chosen})
    corrected = dataclasses.replace(calibration, correction=folds.fit())
    trial.apply_calibration(corrected)
    after = float(trial.divergence(fitted, count).mean())
    if after >= chosen:
        return calibration
    return dataclasses.replace(corrected, divergence=calibration.divergence | {"corrected": after})


def _describe(trial: Trial, divergence: dict[str, float]) -> Calibration:
    info = trial.info
    return Calibration(
        adapter=info.adapter,
        method=info.method,
        options=info.options,
        input_size=info.input_size,
        ratio=trial.wanted["ratio"],
        num_tokens=info.num_tokens,
        tokens=info.tokens,
        divergence=divergence,
        num_samples=len(trial.samples),
        fingerprint=fingerprint(trial.adapter.blocks(trial.host)),
    )
