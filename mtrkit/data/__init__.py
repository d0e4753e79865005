"""Files that come with the package: a small pretrained checkpoint and real images to try it on."""

import io
import zipfile
from functools import lru_cache
from importlib import resources
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

_IMAGES = "cifar10_test_1000.zip"


class BundledImages(NamedTuple):
    """Labelled images, in order of class and then of name."""

    images: np.ndarray  # (1000, 32, 32, 3) uint8, RGB
    labels: np.ndarray  # (1000,) int64, indices into `classes`
    classes: tuple[str, ...]


@lru_cache(maxsize=1)
def bundled_images() -> BundledImages:
    """Return 1 000 CIFAR-10 test images, 100 per class; see ``README.md`` beside them for their origin.

    The arrays are read only, because every caller gets the same ones.

    >>> images, labels, classes = bundled_images()
    >>> images.shape, classes[labels[0]]
    ((1000, 32, 32, 3), 'airplane')
    """
    from PIL import Image

    archive = zipfile.ZipFile(io.BytesIO((resources.files("mtrkit.data") / _IMAGES).read_bytes()))
    names = archive.namelist()
    folders = [PurePosixPath(name).parts[0] for name in names]
    classes = tuple(sorted(set(folders)))
    decoded = (Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names)
    images = np.stack([np.asarray(image) for image in decoded])
    labels = np.array([classes.index(folder) for folder in folders], dtype=np.int64)
    for array in (images, labels):
        array.setflags(write=False)
    return BundledImages(images, labels, classes)
