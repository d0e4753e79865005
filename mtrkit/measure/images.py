"""Labelled images: a folder per class, or those that come with the package."""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mtrkit.data import bundled_images
from mtrkit.errors import FrameWarning, InputError
from mtrkit.measure.kinds import FOR_CLIPS, FOR_IMAGES, IMAGES, VIDEOS, has_files, suffix_of, video_for_images
from mtrkit.measure.pixels import as_rgb

OWN_IMAGES = "bundled"


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, opened one at a time.

    Attributes:
        name: Where they are from.
        classes: Names; a label is an index into them.
        labels: One per image.
        openers: One function per image that returns it as RGB; for a video its path, as few of its frames are read.
        digest: Changes whenever the images do, as far as their names and sizes tell.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    openers: tuple[Callable[[], Any], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, limit: int | None) -> "ImageSet":
        """At most ``limit`` of the images, at even distances, so that every class stays represented."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise InputError(f"a limit of {limit} images leaves none; give 1 or more")
        return self.chosen([index * len(self) // limit for index in range(limit)], f"{limit}")

    def without(self, others: "ImageSet") -> "ImageSet":
        """Those that are not among ``others``, which were chosen from these."""
        taken = set(others.openers)
        kept = [index for index, opener in enumerate(self.openers) if opener not in taken]
        return self.chosen(kept, f"without {others.digest}")

    def share(self, process: int, processes: int) -> tuple["ImageSet", int]:
        """Those that one of several processes takes, as many for each, and how many of them no other one takes."""
        mine = [*range(process, len(self), processes)]
        filled = -(-len(self) // processes) - len(mine)
        return self.chosen(mine + [0] * filled, f"{process} of {processes}"), len(mine)

    def chosen(self, indices: Sequence[int], how: str) -> "ImageSet":
        """Those at the indices; ``how`` they were chosen becomes part of the digest."""
        labels = tuple(self.labels[index] for index in indices)
        openers = tuple(self.openers[index] for index in indices)
        return ImageSet(self.name, self.classes, labels, openers, f"{self.digest}:{how}")


def image_folder(root: str | Path) -> ImageSet:
    """List the images below ``root/<class>/``; classes are numbered in the order of their sorted names.

    Raises:
        InputError: No such folder, or no images in it.
    """
    return labelled_folder(root, IMAGES, lambda path: partial(read_image, path), "images")


def labelled_folder(
    root: str | Path, suffixes: Sequence[str], opener: Callable[[str], Callable[[], Any]], what: str
) -> ImageSet:
    """As :func:`image_folder`, for files with any suffixes; ``opener`` makes that of a path."""
    root = Path(root)
    if not root.is_dir():
        listed = "; lists are of videos, for models of clips" if suffix_of(root) in (".csv", ".txt") else ""
        raise InputError(
            f"{root} is not a folder; give one with a folder of {what} per class, or {OWN_IMAGES!r}{listed}"
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    files = [(label, *found) for label, folder in enumerate(folders) for found in _files_below(folder, suffixes)]
    if not files:
        raise InputError(_nothing_in(root, suffixes, what))
    below = len(str(root / "_")) - 1  # where a path goes on below the root, also below "."
    listing = "\n".join(f"{path[below:]} {size}" for _, path, size in files)
    return ImageSet(
        name=str(root),
        classes=tuple(folder.name for folder in folders),
        labels=tuple(label for label, _, _ in files),
        openers=tuple(opener(path) for _, path, _ in files),
        digest=digest_of(listing),
    )


def digest_of(listing: str) -> str:
    """Sixteen hex digits that stand for a list of files, whose names may be any bytes."""
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()[:16]


def _nothing_in(root: Path, suffixes: Sequence[str], what: str) -> str:
    """Why a folder holds no images, or no videos."""
    if suffixes is not VIDEOS and has_files(root, VIDEOS):
        return f"{root} holds videos, and the model takes images; {FOR_CLIPS}"
    if suffixes is VIDEOS and has_files(root, IMAGES):
        return f"{root} holds images, and the model takes clips; {FOR_IMAGES}"
    return (
        f"{root} has no {what} in folders of its own; expected {root}/<class>/<file> with one of the "
        f"suffixes {', '.join(suffixes)}"
    )


def read_image(path: str | Path) -> Image.Image:
    """Read an image file completely, as RGB: upright, in eight bits, on white; see :mod:`mtrkit.measure.pixels`.

    Raises:
        InputError: The file is not there, or is not a complete image whose numbers mean colours; the message names it.

    Warns:
        FrameWarning: It is an animation, or has several pages; the first is read.
    """
    if wrong := video_for_images(path):
        raise InputError(wrong)
    return decode(path, str(path))


def decode(source: str | Path | io.BytesIO, name: str) -> Image.Image:
    """As :func:`read_image`, from a file or from bytes in memory that are called ``name`` in messages."""
    try:
        with Image.open(source) as image:
            return as_rgb(image, name)
    except (InputError, FrameWarning):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; give the path of an image file") from error
    except Exception as error:  # a damaged file can fail in any way that a parser can
        raise InputError(
            f"{name} cannot be read as an image ({type(error).__name__}: {error}); {_remedy(name)}"
        ) from error


def _remedy(name: str) -> str:
    if suffix_of(name) in (".heic", ".heif"):
        return "Pillow does not read HEIC photos; save it as JPEG"
    return "replace or remove it"


def class_names(folder: Path, labels: Sequence[int]) -> tuple[str, ...]:
    """The lines of ``classes.txt`` in a folder; without that file, the numbers up to the largest label."""
    file = folder / "classes.txt"
    if file.is_file():
        return tuple(read_text(file, "the names of the classes, one per line").strip().splitlines())
    return tuple(map(str, range(max(labels) + 1)))


def read_text(file: Path, what: str) -> str:
    """The text of a file that should hold ``what``.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not a text file in UTF-8 with {what} ({error.reason})") from error


def _files_below(folder: Path, suffixes: Sequence[str]) -> list[tuple[str, int]]:
    """Paths, sorted folder by folder, and sizes; strings, as data sets have too many files for path objects."""
    found = [
        os.path.join(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if suffix_of(name) in suffixes
    ]
    found.sort(key=lambda path: path.split(os.sep))
    return [(path, os.path.getsize(path)) for path in found if os.path.isfile(path)]


def bundled_set() -> ImageSet:
    """The images that come with the package."""
    images, labels, classes = bundled_images()
    return ImageSet(
        name="1000 CIFAR-10 test images that come with mtrkit",
        classes=classes,
        labels=tuple(labels.tolist()),
        openers=tuple(partial(Image.fromarray, image) for image in images),
        digest=hashlib.sha256(images.tobytes()).hexdigest()[:16],
    )
