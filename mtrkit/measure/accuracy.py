"""Classify a set of images and count how often the model is right."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrkit.errors import InputError
from mtrkit.measure.images import ImageSet
from mtrkit.measure.precision import Precision
from mtrkit.measure.preprocess import Preprocess
from mtrkit.measure.processes import ONE, Processes
from mtrkit.measure.statistics import wilson_interval


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, with what it was counted on."""

    correct: int
    n: int

    @property
    def share(self) -> float:
        """Right answers over all, in [0, 1]."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson_interval(self.correct, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def batches(images: ImageSet, preprocess: Preprocess, batch_size: int, workers: int = 2) -> Iterator[Tensor]:
    """Yield (B, 3, H, W) batches in order; the next one is read, by threads, while the last one is in use.

    Of videos they are (B, 3, T, H, W), with all views of a video, which follow each other, in one batch.
    """

    def load(index: int) -> Tensor:
        return preprocess.inputs(images.openers[index]())

    together = images_per_batch(preprocess, batch_size)
    starts = range(0, len(images), together)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting = pool.map(load, range(min(together, len(images))))
        for start in starts:
            batch = torch.cat(list(waiting))
            stop = start + together
            waiting = pool.map(load, range(stop, min(stop + together, len(images))))
            yield batch


def images_per_batch(preprocess: Preprocess, batch_size: int) -> int:
    """How many images, or videos with all their views, are read at once; one in any case."""
    return max(1, batch_size // preprocess.views)


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batch_size: int = 64,
    precision: Precision | None = None,
    workers: int = 2,
    progress: Callable[[int], object] = lambda done: None,
    processes: Processes = ONE,
) -> Tensor:
    """Return the top-1 class of every image, (n,) int64 on the CPU.

    Args:
        model: Called as it is; put it in eval mode first.
        images: What to classify.
        preprocess: Turns an image into the model's input.
        batch_size: Images per call, each view of a video being one.
        precision: What the model's weights are in. Default: float32.
        workers: Threads that read images.
        progress: Told the images of each batch once it is done.
        processes: That share the images; every one of them gets the answers for all.
    """
    device, precision = next(model.parameters()).device, precision or Precision("float32")
    classes = []
    mine, _ = images.share(processes.index, processes.count)
    for batch in batches(mine, preprocess, batch_size, workers):
        with precision.context(device):
            logits = torch.cat([model(part.to(device, precision.weights)) for part in batch.split(batch_size)])
        classes.append(preprocess.combine(logits).argmax(dim=-1).cpu())
        progress(len(batch) // preprocess.views)
    # Image i is the (i // count)-th of process i % count, and what fills the shares up comes last.
    return torch.stack(processes.gather(torch.cat(classes)), dim=1).flatten()[: len(images)]


def score(predicted: Tensor, images: ImageSet) -> Accuracy:
    """Compare predictions (n,) with the labels."""
    return Accuracy(int((predicted == torch.tensor(images.labels)).sum()), len(images))


def check_classes(num_outputs: int, images: ImageSet) -> None:
    """Raise :class:`InputError` unless these can be the model's classes."""
    if num_outputs != len(images.classes):
        raise InputError(
            f"the model has {num_outputs} classes and {images.name} has {len(images.classes)} folders or names of "
            "classes; labels are numbered by sorted folder name, so there has to be one folder per class (an empty one "
            "will do), and beside shards one line of classes.txt"
        )
