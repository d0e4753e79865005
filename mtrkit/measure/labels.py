"""What a model's classes are called, where that is known."""

from collections.abc import Sequence

from mtrkit.data import bundled_images
from mtrkit.models.releases import BUNDLED

_IMAGENET = 1000


def class_labels(name: str, checkpoint: str | None, num_classes: int) -> Sequence[str] | None:
    """The names of a model's classes by number; ``None`` if they are not known.

    A thousand classes are taken for ImageNet-1k's in its usual order, as timm has them, if timm can be imported.

    Args:
        name: Of the model.
        checkpoint: Its weights, as they were given; ``None`` for random ones, which know no classes.
        num_classes: How many there are.

    >>> class_labels("vim_micro_patch4_32", "pretrained", 10)[3]
    'cat'
    """
    if checkpoint is None:
        return None
    own = name in BUNDLED and checkpoint in ("pretrained", str(BUNDLED[name]))
    if own and num_classes == len(bundled_images().classes):
        return bundled_images().classes
    return _of_imagenet() if num_classes == _IMAGENET else None


def _of_imagenet() -> list[str] | None:
    """The first of each class's synonyms."""
    try:
        from timm.data import ImageNetInfo
    except Exception:  # missing, or of another torch or torchvision, which fails in any way
        return None
    return [description.partition(",")[0] for description in ImageNetInfo().label_descriptions()]
