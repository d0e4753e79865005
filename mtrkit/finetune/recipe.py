"""How a model is re-trained: everything that changes the result, as plain data."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mtrkit.errors import OptionError


@dataclass(frozen=True)
class Recipe:
    """A re-training; the defaults are R-MeeTo's (arXiv:2412.12496, section 4, and its published scripts).

    Attributes:
        epochs: How often as many images are drawn as are used; may be a fraction of one. With ``repeats`` above 1 an
            epoch draws some of them that often and others not at all.
        batch_size: Images per step of the optimiser, all processes together.
        accumulate: Passes that share one step, each over a part of the batch; the step is that of the whole batch.
        opt: timm's name of an optimiser.
        lr: Learning rate at the beginning; it is not scaled with the batch.
        min_lr: At the end.
        warmup_epochs: Over which the rate rises linearly first.
        decay_epochs: Last epochs over which the rate falls linearly; before, it is constant. ``None``: it falls along
            a cosine all the time. Either way it changes step by step.
        weight_decay: Of matrices; vectors and what the model names in ``no_weight_decay`` have none.
        clip_norm: Longest gradient, in the 2-norm over all weights; ``None``: any.
        ema: Decay per step of averaged weights, which then are the result; ``None``: no average.
        ema_warmup: Whether the average begins with the latest weights only, and its decay grows up to ``ema``.
        distill: Weight of the Kullback-Leibler divergence from the answers of the dense model.
        teacher: Which one that is: ``"itself"``, the weights as they are in training; ``"before"``, a copy of the first
            ones, which takes memory but does not move; or a file with weights of the same model, a copy too.
        fraction: Share of the images that is used, in (0, 1]; which ones depends on the seed.
        label_smoothing: Share of the target that goes to all classes alike.
        mixup: α of Mixup, 0 for none (Zhang et al. 2018).
        cutmix: α of CutMix, 0 for none (Yun et al. 2019).
        auto_augment: timm's name of a policy, such as RandAugment's; ``None`` for none.
        color_jitter: Strength, 0 for none; used without ``auto_augment`` alone, as timm has it.
        erase: Probability of random erasing.
        crop_scale: Least share of an image in a random crop.
        repeats: Augmentations of each image that is drawn (repeated augmentation, Hoffer et al. 2020).
        precision: ``"no"`` for float32, or autocast to ``"bf16"`` or ``"fp16"``.
        seed: Of everything that is drawn.
    """

    epochs: float = 3.0
    batch_size: int = 1024
    accumulate: int = 1
    opt: str = "adamw"
    lr: float = 2e-5
    min_lr: float = 1e-6
    warmup_epochs: float = 0.0
    decay_epochs: float | None = None
    weight_decay: float = 0.05
    clip_norm: float | None = None
    ema: float | None = None
    ema_warmup: bool = False
    distill: float = 0.0
    teacher: str = "itself"
    fraction: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    erase: float = 0.25
    crop_scale: float = 0.08
    repeats: int = 3
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise OptionError(f"{name}={value} must be a number from {low:g} to {high:g}")
        for name in ("batch_size", "accumulate", "repeats"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise OptionError(f"{name}={value!r} must be a whole number of at least 1")
        if self.epochs <= 0 or self.lr <= 0 or self.fraction <= 0 or self.crop_scale <= 0:
            raise OptionError("epochs, lr, fraction and crop_scale must be above 0")
        if self.min_lr > self.lr:
            raise OptionError(f"min_lr={self.min_lr:g} is above lr={self.lr:g}; the rate falls from lr to min_lr")
        if self.teacher not in ("itself", "before") and not Path(self.teacher).is_file():
            raise OptionError(f"teacher={self.teacher!r} is neither 'itself' nor 'before' nor a file with weights")
        if self.teacher != "itself" and not self.distill:
            raise OptionError(f"teacher={self.teacher!r} teaches nothing at distill=0; set distill, such as to 0.5")
        if self.precision not in ("no", "bf16", "fp16"):
            raise OptionError(f"precision={self.precision!r} is unknown; choose 'no', 'bf16' or 'fp16'")

    @classmethod
    def of_dyvm(cls) -> "Recipe":
        """DyVM's for Vim-S (arXiv:2504.04787 and its published script): 5e-5 per 512 images, 256 images per step.

        The rate for Vim-Ti is 3e-5 per 512 images. The average of the weights that the script keeps is not what it
        measures, so there is none here.
        """
        return cls(epochs=30.0, batch_size=256, lr=2.5e-5, warmup_epochs=5.0, weight_decay=1e-8)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    def rate(self, step: int, steps: int, per_epoch: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = self.warmup_epochs * per_epoch
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.decay_epochs is None:
            share = (step - warm) / max(1.0, steps - 1 - warm)
            above = (1 + math.cos(math.pi * min(1.0, share))) / 2
        else:
            falling = self.decay_epochs * per_epoch
            above = min(1.0, (steps - 1 - step) / falling) if falling else 1.0
        return self.min_lr + (self.lr - self.min_lr) * above

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


_BOUNDS = (
    *((name, 0.0, math.inf) for name in ("epochs", "lr", "min_lr", "warmup_epochs", "weight_decay", "distill")),
    *((name, 0.0, math.inf) for name in ("decay_epochs", "clip_norm", "mixup", "cutmix", "color_jitter", "seed")),
    *((name, 0.0, 1.0) for name in ("ema", "fraction", "label_smoothing", "erase", "crop_scale")),
)
